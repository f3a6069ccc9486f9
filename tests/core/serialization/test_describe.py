import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from nbcompile.core.errors import CheckpointError
from nbcompile.core.example import Origin, TensorSpec, origin_of
from nbcompile.core.serialization.describe import MAX_CONSTANT_BYTES, describe_model
from nbcompile.core.serialization.graph_json import NotSerialisable
from nbcompile.core.serialization.module_json import module_from_json, module_to_json
from nbcompile.core.serialization.rebuild import origin_from_json, rebuild
from nbcompile.core.tracing.capture import capture

ORIGIN = Origin((TensorSpec((2, 4)),), "package.module:net", {"mean": [0.5]})


class Net(nn.Module):
    table: Tensor

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.alias = self.first
        self.unread = nn.BatchNorm1d(3)
        self.register_buffer("table", torch.rand(size), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.alias(x)).sum() + self.table.sum()
        return y


def described(model: nn.Module) -> dict[str, Any]:
    found = describe_model(model, capture(model), ORIGIN)
    again: dict[str, Any] = json.loads(json.dumps(found))
    return again


def test_round_trip() -> None:
    model = Net().eval()
    data = described(model)
    assert data["shared"] == {
        "second.weight": "first.weight",
        "alias.weight": "first.weight",
        "alias.bias": "first.bias",
    }
    assert data["aliases"] == {"alias": "first"}
    stand_in, notes = rebuild(data, model.state_dict())
    assert notes == []
    assert origin_of(stand_in) == ORIGIN
    assert list(stand_in.state_dict()) == list(model.state_dict())
    assert [k for k, _ in stand_in.named_parameters()] == [k for k, _ in model.named_parameters()]
    assert stand_in.get_submodule("alias") is stand_in.get_submodule("first")
    x = torch.randn(2, 4)
    assert torch.equal(stand_in(x), model(x))


@pytest.mark.parametrize(
    "drop", [["second.weight", "alias.weight", "alias.bias"], ["first.weight", "alias.weight", "first.bias"]]
)
def test_what_a_writer_drops_as_a_duplicate_is_put_back(drop: list[str]) -> None:
    model = Net().eval()
    kept = {k: v for k, v in model.state_dict().items() if k not in drop}
    stand_in, _ = rebuild(described(model), kept)
    assert list(stand_in.state_dict()) == list(model.state_dict())


def test_weights_that_are_no_longer_tied_stay_apart() -> None:
    model = Net().eval()
    data, state = described(model), {k: v.clone() for k, v in model.state_dict().items()}
    state["second.weight"] += 1
    stand_in, _ = rebuild(data, state)
    assert not torch.equal(stand_in.get_parameter("second.weight"), stand_in.get_parameter("first.weight"))


def test_a_stand_in_shares_no_state_with_its_copies() -> None:
    model = Net().eval()
    stand_in, _ = rebuild(described(model), model.state_dict())
    copied = copy.deepcopy(stand_in)
    assert isinstance(copied, fx.GraphModule)
    assert list(copied.state_dict()) == list(stand_in.state_dict())
    assert copied.get_submodule("alias") is copied.get_submodule("first")
    with torch.no_grad():
        copied.get_parameter("first.weight").zero_()
    assert stand_in.get_parameter("first.weight").any()


def test_large_constants_are_not_recorded(caplog: pytest.LogCaptureFixture) -> None:
    data = described(Net(MAX_CONSTANT_BYTES // 4))
    assert data["graph"] is None
    assert data["why"] == f"22,369,624 bytes of constants outside the state_dict; at most {MAX_CONSTANT_BYTES:,}"
    assert "files of this Net will need its code (--model, or load(path, model=...)): 22,369,624 bytes" in caplog.text
    assert data["shared"]
    with pytest.raises(CheckpointError, match=r"^the file cannot be read without the model's code \(22,369,624 bytes"):
        rebuild(data, {})


def test_the_origin_is_checked() -> None:
    assert origin_from_json({"inputs": [[[2, 4], "float32"]], "spec": 5}) == Origin((TensorSpec((2, 4)),))
    with pytest.raises(CheckpointError, match=r"^the record's inputs are malformed: KeyError: 'inputs'$"):
        origin_from_json({})


MODULES = [
    nn.Conv2d(3, 4, (3, 1), 2, (1, 0), padding_mode="reflect", bias=False),
    nn.ConvTranspose2d(2, 3, 3, output_padding=1, stride=2),
    nn.Linear(3, 4, bias=False),
    nn.BatchNorm2d(3, eps=0.1, momentum=None, affine=False),
    nn.LayerNorm((2, 3), bias=False),
    nn.GroupNorm(2, 4),
    nn.MultiheadAttention(4, 2, add_bias_kv=True, kdim=3),
    nn.GRU(3, 4, 2, bidirectional=True),
    nn.LSTM(3, 4, proj_size=2),
    nn.RNN(3, 4, nonlinearity="relu"),
    nn.GELU("tanh"),
    nn.LeakyReLU(0.3),
    nn.Hardtanh(0, 6),
    nn.PReLU(3),
    nn.Embedding(5, 4, padding_idx=0),
    nn.Upsample(scale_factor=2.0, mode="bilinear"),
    nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    nn.AdaptiveAvgPool2d((None, 2)),
    nn.Softmax(1),
    nn.Flatten(1, 2),
    nn.Unflatten(1, (2, 2)),
    nn.Dropout(0.3),
    nn.PixelShuffle(2),
    nn.ZeroPad2d(1),
    nn.Identity(),
    nn.Bilinear(2, 3, 4),
]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: type(m).__name__)
def test_modules(module: nn.Module) -> None:
    again = module_from_json(json.loads(json.dumps(module_to_json(module))))
    assert type(again) is type(module)
    assert repr(again) == repr(module)
    plain = {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str, tuple)) and k != "training"}
    assert {k: vars(again)[k] for k in plain} == plain
    assert all(value.is_meta for value in again.state_dict().values())


class Own(nn.Linear):
    pass


def hooked() -> nn.Module:
    module = nn.Linear(2, 2)
    module.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (Own(2, 2), r"a module of class .*Own"),
        (hooked(), "a Linear: it carries hooks, which would be lost"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "a module of class .*ParametrizedLinear"),
        (
            nn.TransformerEncoderLayer(4, 2, activation="gelu"),
            "a TransformerEncoderLayer, which does not tell its argument 'd_model'",
        ),
        (
            nn.Sequential(nn.ReLU()),
            "a Sequential, which|class 'torch.nn.Sequential', which no graph in a file may hold",
        ),
    ],
)
def test_modules_that_could_not_be_rebuilt(module: nn.Module, why: str) -> None:
    with pytest.raises(NotSerialisable, match=why):
        module_to_json(module)


def test_a_module_that_was_changed_after_it_was_made() -> None:
    module = nn.Linear(2, 2)
    module.weight = nn.Parameter(torch.zeros(3, 2))
    with pytest.raises(NotSerialisable, match="a Linear that its own constructor arguments do not rebuild"):
        module_to_json(module)
