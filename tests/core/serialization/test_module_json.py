"""Modules as JSON: what the constructor is told comes from the object, and a head may come back in another size."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.errors import CheckpointError
from nbcompile.core.serialization.graph_json import NotSerialisable
from nbcompile.core.serialization.module_json import module_from_json, module_to_json, resize

COUNTS, UPSAMPLE = (
    {"count_include_pad": True, "divisor_override": None},
    {"align_corners": None, "recompute_scale_factor": None},
)
RECURRENT = {"input_size": 3, "hidden_size": 4, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0}
RECURRENT |= {"bidirectional": False}


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (nn.Linear(3, 4), {"in_features": 3, "out_features": 4, "bias": True}),
        (nn.Linear(3, 4, bias=False), {"in_features": 3, "out_features": 4, "bias": False}),
        (nn.LeakyReLU(0.3, inplace=True), {"negative_slope": 0.3, "inplace": True}),
        (nn.Hardtanh(-0.5, float("inf")), {"min_val": -0.5, "max_val": {"float": "inf"}, "inplace": False}),
        (nn.AvgPool2d(2, ceil_mode=True), {"kernel_size": 2, "stride": 2, "padding": 0, "ceil_mode": True} | COUNTS),
        (nn.PixelShuffle(3), {"upscale_factor": 3}),
        (nn.Upsample((4, 5)), {"size": {"tuple": [4, 5]}, "scale_factor": None, "mode": "nearest"} | UPSAMPLE),
        (nn.LSTM(3, 4, proj_size=2), RECURRENT | {"proj_size": 2}),
        (nn.GRU(3, 4, bias=False), RECURRENT | {"bias": False}),
        (nn.RNN(3, 4, nonlinearity="relu"), RECURRENT | {"nonlinearity": "relu"}),
    ],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_the_constructor_is_told_what_it_was_told(module: nn.Module, arguments: dict[str, Any]) -> None:
    data = module_to_json(module)
    assert data == {"class": f"torch.nn.{type(module).__name__}", "arguments": arguments}
    again = module_from_json(json.loads(json.dumps(data)))
    assert not again.training
    assert repr(again) == repr(module)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("add_bias", [True, False])
def test_attention_keeps_its_biases(bias: bool, add_bias: bool) -> None:
    module = nn.MultiheadAttention(4, 2, bias=bias, add_bias_kv=add_bias, batch_first=True)
    arguments = module_to_json(module)["arguments"]
    assert (arguments["bias"], arguments["add_bias_kv"]) == (bias, add_bias)
    assert set(module_from_json({"class": "torch.nn.MultiheadAttention", "arguments": arguments}).state_dict()) == set(
        module.state_dict()
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (5, "the graph has a malformed module: TypeError: 'int' object is not subscriptable"),
        ({"class": "torch.nn.ReLU"}, "the graph has a malformed module: KeyError: 'arguments'"),
        (
            {"class": "torch.nn.ReLU", "arguments": []},
            "the graph has a malformed module: AttributeError: 'list'",
        ),
        (
            {"class": "torch.nn.ReLU", "arguments": {"slope": 1}},
            "a module of class 'torch.nn.ReLU' cannot be built: ReLU.__init__() got an unexpected keyword argument",
        ),
        (
            {"class": "torch.nn.ReLU", "arguments": {"a b": 1}},
            "the graph has a argument called 'a b', which is",
        ),
        (
            {"class": "torch.nn.Linear", "arguments": {"in_features": 2**20, "out_features": 2**20}},
            "a module of class 'torch.nn.Linear' cannot be built: the file asks for tensors that no small network has",
        ),
    ],
)
def test_what_is_no_module(data: Any, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        module_from_json(data)
    assert str(caught.value).startswith(message)


def test_what_torch_says_is_cut() -> None:
    module = {"class": "torch.nn.Conv2d", "arguments": dict.fromkeys("abc", 1) | {f"x{'y' * 400}": 1}}
    with pytest.raises(CheckpointError) as caught:
        module_from_json(module)
    assert len(str(caught.value)) <= 60 + 300


class Telltale(nn.Linear):
    pass


def test_modules_that_do_not_tell_what_they_were_made_of() -> None:
    with pytest.raises(NotSerialisable, match=rf"^a module of class {__name__}\.Telltale$"):
        module_to_json(Telltale(2, 2))
    changed = nn.Linear(2, 2)
    changed.in_features = 5
    with pytest.raises(NotSerialisable, match=r"^a Linear that its own constructor arguments do not rebuild$"):
        module_to_json(changed)
    pool = nn.AvgPool2d(2)
    pool.kernel_size = torch.tensor(2)  # type: ignore[assignment]
    with pytest.raises(NotSerialisable, match=r"^a AvgPool2d, which does not tell its argument 'kernel_size'$"):
        module_to_json(pool)
    wide = nn.Linear(2, 2)
    wide.in_features = 2**40
    with pytest.raises(NotSerialisable, match=r"^a module of class 'torch.nn.Linear' cannot be built: the file asks"):
        module_to_json(wide)


def hollow(module: nn.Module) -> nn.Module:
    return module.to("meta")


def resized(module: nn.Module, *shape: int, name: str = "body.it") -> tuple[nn.Module, list[str]]:
    notes: list[str] = []
    return resize(name, hollow(module), {"body.it.weight": torch.zeros(shape)}, notes), notes


@pytest.mark.parametrize(
    ("module", "shape", "same"),
    [
        (nn.Linear(4, 5), (2, 7), {"in_features": 7, "out_features": 2}),
        (nn.Linear(4, 5, bias=False), (2, 4), {"in_features": 4, "out_features": 2}),
        (
            nn.BatchNorm2d(4, 0.1, 0.2, track_running_stats=False),
            (6,),
            {"num_features": 6, "eps": 0.1, "momentum": 0.2},
        ),
        (nn.BatchNorm1d(4, 0.3, None), (6,), {"num_features": 6, "eps": 0.3, "momentum": None, "affine": True}),
        (
            nn.Conv2d(4, 6, 3, 2, 1, 2, padding_mode="reflect", bias=False),
            (8, 5, 3, 3),
            {"in_channels": 5, "out_channels": 8, "stride": (2, 2), "padding": (1, 1), "dilation": (2, 2), "groups": 1},
        ),
        (nn.Conv1d(4, 6, 3, groups=2), (8, 3, 3), {"in_channels": 6, "out_channels": 8, "groups": 2}),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_layer_of_the_size_that_the_file_has(module: nn.Module, shape: tuple[int, ...], same: dict[str, Any]) -> None:
    old = tuple(module.get_parameter("weight").shape)
    new, notes = resized(module, *shape)
    assert notes == [f"'body.it' was rebuilt to {shape}, as the file holds it; the record has {old}"]
    assert type(new) is type(module)
    assert tuple(new.get_parameter("weight").shape) == shape
    assert set(new.state_dict()) == set(module.state_dict())
    assert {key: getattr(new, key) for key in same} == same
    assert not new.training
    assert all(value.is_meta for value in new.state_dict().values())
    if isinstance(module, nn.Conv2d):
        assert (new.padding_mode, new.bias) == ("reflect", None)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(4, 5), (5, 4)),  # its own size
        (nn.Linear(4, 5), (5,)),  # no size of a linear layer
        (nn.Conv2d(4, 6, 3), (6, 4, 5, 5)),  # another kernel: the geometry would be another one
        (nn.ConvTranspose2d(4, 6, 3), (4, 8, 3, 3)),
        (nn.LayerNorm(4), (5,)),
        (nn.ReLU(), (5,)),
        (nn.BatchNorm1d(4, affine=False), (5,)),
        (nn.Embedding(4, 2), (5, 2)),
    ],
)
def test_other_layers_stay_as_the_record_has_them(module: nn.Module, shape: tuple[int, ...]) -> None:
    same, notes = resized(module, *shape)
    assert same is module
    assert notes == []
    other, notes = resized(nn.Linear(4, 5), 2, 4, name="body.other")  # another layer's weight
    assert (other.out_features, notes) == (5, [])


def test_a_weight_of_the_files_is_not_touched() -> None:
    tensors: dict[str, Tensor] = {"it.weight": torch.ones(2, 4)}
    resize("it", hollow(nn.Linear(4, 5)), tensors, [])
    assert torch.equal(tensors["it.weight"], torch.ones(2, 4))
