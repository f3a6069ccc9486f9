"""From a description back to a model: what comes back, and what each lack is called."""

import base64
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.errors import CheckpointError
from nbcompile.core.example import Origin, TensorSpec, origin_of
from nbcompile.core.serialization.bounds import MAX_ELEMENTS
from nbcompile.core.serialization.describe import describe_model
from nbcompile.core.serialization.rebuild import origin_from_json, rebuild, with_shared
from nbcompile.core.tracing.capture import capture
from nbcompile.testing import scramble_

Record = dict[str, Any]
ORIGIN = Origin((TensorSpec((2, 3, 7, 5)),), "package.module:net", {"mean": [0.5]})
X = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A parameter and buffers of the network's own, a constant, tied weights, and a head that eval mode never reads."""

    gain: Tensor
    table: Tensor
    flags: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3, padding=1), "norm": nn.BatchNorm2d(4)})
        self.again = nn.Conv2d(4, 4, 1, bias=False)
        self.twin = self.body
        self.tied = nn.Conv2d(4, 4, 1, bias=False)
        self.tied.weight = self.again.weight
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.register_buffer("gain", torch.rand(4, 1, 1))
        self.register_buffer("table", torch.rand(1, 4, 1, 1).to(torch.float16), persistent=False)
        self.register_buffer("flags", torch.tensor([True, False]), persistent=False)
        self.auxiliary = nn.Linear(2, 2)
        self.head = nn.Linear(4, 5)
        scramble_(self)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body["norm"](self.body["conv"](x)).relu() * self.scale + self.gain * self.table.float()
        y = self.tied(self.again(y)) + self.flags.sum()
        if self.training:
            y = y + self.auxiliary(y[..., :2]).sum()
        z: Tensor = self.head(y.mean((2, 3)))
        return z


@pytest.fixture
def model() -> Net:
    return Net().eval()


@pytest.fixture
def record(model: Net) -> Record:
    again: Record = json.loads(json.dumps(describe_model(model, capture(model), ORIGIN)))
    assert again["graph"] is not None
    return again


def test_the_stand_in_is_the_model(model: Net, record: Record) -> None:
    state = model.state_dict()
    stand_in, notes = rebuild(record, state)
    assert notes == []
    assert torch.equal(stand_in(X), model(X))
    assert list(stand_in.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in stand_in.state_dict().items())
    assert [key for key, _ in stand_in.named_parameters()] == [key for key, _ in model.named_parameters()]
    assert {key for key, _ in stand_in.named_buffers()} == {key for key, _ in model.named_buffers()}
    assert stand_in.get_parameter("tied.weight") is stand_in.get_parameter("again.weight")
    assert not any(module.training for module in stand_in.modules())
    assert not any(t.is_meta for t in (*stand_in.parameters(), *stand_in.buffers()))
    assert (origin_of(stand_in), type(stand_in).__name__) == (ORIGIN, "StandIn")
    assert record["aliases"] == {"twin": "body"}  # and nothing that is inside it
    assert stand_in.get_submodule("twin.norm") is stand_in.get_submodule("body.norm")


def test_weights_of_another_dtype(model: Net, record: Record) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    stand_in, _ = rebuild(record, half)
    assert {p.dtype for p in stand_in.parameters()} == {torch.float16}
    assert stand_in.get_buffer("table").dtype == torch.float16
    assert stand_in.get_buffer("flags").dtype == torch.bool


def test_a_head_for_other_classes_and_a_wider_body(model: Net, record: Record) -> None:
    state = model.state_dict() | {"head.weight": torch.rand(2, 4), "head.bias": torch.rand(2)}
    stand_in, notes = rebuild(record, state)
    assert notes == ["'head' was rebuilt to (2, 4), as the file holds it; the record has (5, 4)"]
    head = stand_in.get_submodule("head")
    assert isinstance(head, nn.Linear)
    assert (head.in_features, head.out_features) == (4, 2)
    assert torch.equal(stand_in(X), nn.functional.linear(features(model), state["head.weight"], state["head.bias"]))


def features(model: Net) -> Tensor:
    body = copy.deepcopy(model)
    body.head = nn.Identity()  # type: ignore[assignment]
    y: Tensor = body(X)
    return y


def change(key: str, value: Any) -> Callable[[Record, dict[str, Tensor]], None]:
    return lambda record, tensors: record.update({key: value})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda r, t: t.pop("gain"),
            "the weights are not those of the recorded model: the file lacks 'gain' (1 such)",
        ),
        (
            lambda r, t: (t.pop("gain"), t.pop("head.bias"), t.update(zz=torch.zeros(1), more=torch.zeros(1))),
            "the weights are not those of the recorded model: the file lacks 'gain' (2 such) and has an "
            "unknown 'more' (2 such)",
        ),
        (
            lambda r, t: t.update(more=torch.zeros(1)),
            "the weights are not those of the recorded model: the file has an unknown 'more' (1 such)",
        ),
        (
            lambda r, t: t.update({"body.conv.bias": torch.zeros(5)}),
            "the weights do not fit the recorded model: size mismatch for body.conv.bias: copying a param with shape",
        ),
        (change("modules", {}), "the graph calls 'body.conv', which the file does not describe"),
        (change("constants", {}), "the graph reads 'table', which the file does not hold"),
        (
            change("constants", {"table": [[4], "float32"]}),
            "the record's constants are malformed: ValueError: not enough values to unpack (expected 3, got 2)",
        ),
        (
            change("constants", {"table": [[4, 1], "float32", base64.b64encode(bytes(8)).decode()]}),
            "the record's constants are malformed: RuntimeError: shape '[4, 1]' is invalid for input of size 2",
        ),
        (change("constants", None), "the record has no 'constants'"),
        (change("aliases", {"training": "head"}), "'training' has a name that torch's modules need for themselves"),
        (change("aliases", {"a.graph": "head"}), None),
        (change("aliases", {"graph": "head"}), "'graph' has a name that torch's modules need for themselves"),
        (change("aliases", {"graph.a.b": "head"}), "'graph.a.b' has a name that torch's modules need for themselves"),
        (change("aliases", {"graph.a": "head"}), "'graph.a' has a name that torch's modules need for themselves"),
        (change("aliases", {"a.forward.b": "head"}), "'a.forward.b' has a name that torch's modules need"),
        (change("keys", None), "the record has no 'keys'"),
        (change("parameters", {}), "the record has no 'parameters'"),
        (change("shared", []), "the record has no 'shared'"),
        (
            change("graph", None),
            "the file cannot be read without the model's code (it holds no graph): give the model "
            "(--model package.module:factory, or load(path, model=...))",
        ),
        (change("graph", []), "the file cannot be read without the model's code (it holds no graph)"),
        (change("inputs", [[[2, 3, 7, 5], "float32"]] * 2), "the graph takes 1 inputs, but 2 are recorded"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    spoil: Callable[[Record, dict[str, Tensor]], Any], message: str | None, model: Net, record: Record
) -> None:
    tensors = dict(model.state_dict())
    spoil(record, tensors)
    if message is None:
        rebuild(record, tensors)
        return
    with pytest.raises(CheckpointError) as caught:
        rebuild(record, tensors)
    assert str(caught.value).startswith(message)


def test_a_module_that_keeps_an_empty_tensor(model: Net, record: Record) -> None:
    """The graph calls it, and no key of the file fills it."""
    record["modules"]["head"] = {"class": "torch.nn.BatchNorm1d", "arguments": {"num_features": 4}}
    tensors = {k: v for k, v in model.state_dict().items() if not k.startswith("head.")}
    record["keys"] = list(tensors)
    record["parameters"] = [k for k in record["parameters"] if k in tensors]
    with pytest.raises(CheckpointError, match=r"^the file lacks 'head\.weight' \(4 such\)$"):
        rebuild(record, tensors)


def test_what_torch_says_is_passed_on_in_one_line(record: Record) -> None:
    class Wild(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            if key == "graph":
                raise RuntimeError(f"first {'x' * 400}\nsecond")
            return super().get(key, default)

    with pytest.raises(CheckpointError) as caught:
        rebuild(Wild(record), {})
    assert str(caught.value) == f"the model cannot be rebuilt: RuntimeError: first {'x' * 294}"


def test_what_was_dropped_as_a_duplicate() -> None:
    one, other = torch.rand(2), torch.rand(3)
    data = {"shared": {"b": "a", "c": "a", "e": "d", "g": "f"}}
    whole = with_shared(data, {"a": one, "e": other, "k": one})
    assert whole == {"a": one, "b": one, "c": one, "d": other, "e": other, "k": one}
    assert with_shared(data, {"a": one, "b": other})["b"] is other  # what is there is left alone


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ([[[2, 4], "float32"]], (TensorSpec((2, 4)),)),
        ([[[2], "int64"], [[], "bool"]], (TensorSpec((2,), torch.int64), TensorSpec((), torch.bool))),
        (
            [{"image": [[1, 3], "float16"], "more": [[[5], "uint8"]]}],
            ({"image": TensorSpec((1, 3), torch.float16), "more": [TensorSpec((5,), torch.uint8)]},),
        ),
        (
            [[[[3, 8, 8], "float32"], [[3, 9, 7], "float32"]]],  # a list of two images
            ([TensorSpec((3, 8, 8)), TensorSpec((3, 9, 7))],),
        ),
        ([[[MAX_ELEMENTS], "int8"]], (TensorSpec((MAX_ELEMENTS,), torch.int8),)),
        ([[[1] * 8, "bfloat16"]], (TensorSpec((1,) * 8, torch.bfloat16),)),
    ],
)
def test_inputs_come_back(inputs: list[Any], expected: tuple[Any, ...]) -> None:
    found = origin_from_json({"inputs": inputs, "spec": "a:b", "preprocessing": {"size": 8}})
    assert found == Origin(expected, "a:b", {"size": 8})
    assert origin_from_json({"inputs": inputs, "preprocessing": None}) == Origin(expected)


MALFORMED = "the record's inputs are malformed: "
READ = "at least one tensor of at most 8 dimensions, and at most 268,435,456 elements, are read from a file"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([[[0], "float32"]], f"{MALFORMED}ValueError: 0 is no size"),
        ([[[True], "float32"]], f"{MALFORMED}ValueError: True is no size"),
        ([[["4"], "float32"]], f"{MALFORMED}ValueError: 4 is no size"),
        ([[[MAX_ELEMENTS + 1], "float32"]], f"{MALFORMED}ValueError: 268435457 is no size"),
        ([[["x" * 99], "float32"]], f"{MALFORMED}ValueError: {'x' * 40} is no size"),
        ([[[2], "float8_e5m2"]], f"{MALFORMED}KeyError: 'float8_e5m2'"),
        (5, f"{MALFORMED}TypeError: 'int' object is not iterable"),
        ([7], f"{MALFORMED}TypeError: object of type 'int' has no len()"),
        ([], f"the recorded inputs have 0 elements in 0 tensors; {READ}"),
        ([[[1] * 9, "float32"]], f"the recorded inputs have 1 elements in 1 tensors; {READ}"),
        (
            [[[2**14, 2**13], "float32"], [[2**14, 2**13], "float32"], [[1], "float32"]],
            f"the recorded inputs have 268,435,457 elements in 3 tensors; {READ}",
        ),
    ],
)
def test_inputs_that_are_none(inputs: Any, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        origin_from_json({"inputs": inputs})
    assert str(caught.value) == message
