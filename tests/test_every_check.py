"""For every check that is printed as ok: something wrong is planted, and the check says so.

The names are found in the code, so that a check without a planted fault fails here.
"""

import ast
import copy
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from onnx import helper, numpy_helper
from torch import Tensor, nn

import nbcompile
from nbcompile.cli.run.verify import run_verify
from nbcompile.exporters.to_tflite.file.edit import new_operator
from nbcompile.exporters.to_tflite.file.flatbuffer import pack
from nbcompile.verification import Verification, verify_merged

PACKAGE = Path(nbcompile.__file__).parent
X = torch.randn(1, 3, 7, 5, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers of one shape, a norm, a border."""

    def __init__(self, stride: int = 1, groups: int = 1, padding_mode: str = "zeros", shift: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a = nn.Conv2d(3, 4, 3, stride, 1, bias=False, padding_mode=padding_mode)
        self.norm = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 4, 3, 1, 1, groups=groups)
        self.head = nn.Linear(4, 2)
        nn.init.uniform_(self.norm.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.b(self.norm(self.a(x)).relu()).mean((2, 3))) + self.shift
        return y


def changed(change: Callable[[nn.Module], object]) -> nn.Module:
    net = Net().eval()
    with torch.no_grad():
        change(net)
    return net


def another(candidate: nn.Module) -> Verification:
    return nbcompile.verify(Net().eval(), candidate.eval(), X)


@cache
def exported(make: Callable[[], nn.Module]) -> bytes:
    """The file of a network; made once."""
    with TemporaryDirectory() as folder:
        return nbcompile.export(make().eval(), Path(folder, "it.onnx"), X).path.read_bytes()


def grouped() -> nn.Module:
    return Net(groups=2)


def strided() -> nn.Module:
    return Net(stride=2)


def file_of(
    make: Callable[[], nn.Module], folder: Path, change: Callable[[onnx.ModelProto], object] | None = None
) -> Verification:
    path = folder / "it.onnx"
    path.write_bytes(exported(make))
    if change is not None:
        held = onnx.load(path)
        change(held)
        onnx.save(held, path)
    return nbcompile.verify(Net().eval(), path, X)


def nudge(held: onnx.ModelProto) -> None:
    """One weight of the first layer, by a tenth."""
    first = held.graph.initializer[0]
    value = numpy_helper.to_array(first).copy()
    value.flat[0] += 0.1
    first.CopyFrom(numpy_helper.from_array(value, first.name))


def forget(net: nn.Module) -> None:
    net.get_submodule("norm").running_mean = None


def swap(net: nn.Module) -> None:
    weight = net.get_parameter("head.weight")
    weight.copy_(weight.flip(1))


class Padded(nn.Module):
    def __init__(self, net: nn.Module, *, costs: bool = False) -> None:
        super().__init__()
        self.net, self.costs = net, costs
        self.register_buffer("more", torch.zeros(100))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y + (y @ torch.zeros(2, 2) if self.costs else self.more[:1])


class Shifted(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y * 1.001


def merged(of: Callable[[nn.Module], nn.Module]) -> Verification:
    net = Net().eval()
    return verify_merged(net, of(nbcompile.fuse(net, example_input=X, scope="all")), X)


def by_command(folder: Path) -> Verification:
    """A file of another input than the original takes."""
    (folder / "it.onnx").write_bytes(exported(Net))
    return run_verify(str(folder / "it.onnx"), "nbcompile:dscnn", model=None, key=None, input_shape=None, options={})


class Clips(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp(-6, 6))


class Gives(nn.Module):
    """``Net``, and what is made of its output."""

    def __init__(self, make: Callable[[Tensor], Any], wrong: float = 0.0) -> None:
        super().__init__()
        self.net, self.make = Net(), make
        self.net.head.bias.data[1] += wrong

    def forward(self, x: Tensor) -> Any:
        return self.make(self.net(x))


def given(make: Callable[[Tensor], Any], other: Callable[[Tensor], Any] | None = None) -> Verification:
    """What ``Net`` gives, put in another form; wrong weights, or another form on the other side."""
    reference, candidate = Gives(make), Gives(other or make, wrong=0.0 if other else 0.1)
    return nbcompile.verify(reference.eval(), candidate.eval(), X)


class Rows(nn.Module):
    """A table of which the example, all zeros, reads one row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table, self.kind = nn.Embedding(50, 4), nn.Embedding(3, 4)

    def forward(self, words: Tensor, kinds: Tensor) -> Tensor:
        return self.table(words).mean(1) + self.kind(kinds)


def rows() -> Verification:
    other = Rows().eval()
    other.table.weight.data[40:] += 1
    return nbcompile.verify(
        Rows().eval(), other, (torch.zeros(1, 9, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    )


def recurrent(held: onnx.ModelProto) -> None:
    """A layer whose output nobody reads."""
    weights = {"w": (1, 64, 5), "r": (1, 64, 16), "one": (7, 5)}
    for name, shape in weights.items():
        held.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    held.graph.initializer.append(numpy_helper.from_array(np.array([21, -1, 5]), "to"))
    first = held.graph.input[0].name
    held.graph.node.append(helper.make_node("Reshape", [first, "to"], ["rows"]))
    held.graph.node.append(helper.make_node("LSTM", ["rows", "w", "r"], ["unread"], "extra", hidden_size=16))


def at_batch_two(held: onnx.ModelProto) -> None:
    """Right at batch 2 only."""
    constants = {"two": np.array([2]), "right": np.array([1.0], "f4"), "wrong": np.array([3.0], "f4")}
    held.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    output = held.graph.output[0]
    held.graph.node.extend([
        helper.make_node("Shape", [held.graph.input[0].name], ["sizes"], start=0, end=1),
        helper.make_node("Equal", ["sizes", "two"], ["is_two"]),
        helper.make_node("Where", ["is_two", "right", "wrong"], ["factor"]),
        helper.make_node("Mul", [output.name, "factor"], ["made"]),
    ])  # fmt: skip
    output.name = "made"


def relu(folder: Path, size: int) -> Path:
    """A ``.tflite`` file of one operator."""
    tensors = [
        schema.TensorT(shape=np.array([1, size], np.int32), type=schema.TensorType.FLOAT32, name=name, buffer=0)
        for name in (b"x", b"y")
    ]
    graph = schema.SubGraphT(tensors=tensors, inputs=[0], outputs=[1], operators=[])
    model = schema.ModelT(version=3, subgraphs=[graph], buffers=[schema.BufferT()], operatorCodes=[])
    graph.operators.append(new_operator(model, "RELU", [0], 1))
    path = folder / f"relu{size}.tflite"
    path.write_bytes(pack(model))
    return path


PLANTED: list[tuple[str, str, Callable[[Path], Verification]]] = [
    ("keys and shapes", "a key too many", lambda _: another(Padded(Net()))),
    ("keys and shapes", "another shape", lambda _: another(Net(groups=2))),
    ("keys and shapes", "a buffer that is gone", lambda _: another(changed(forget))),
    ("layers", "another stride", lambda _: another(Net(stride=2))),
    ("layers", "a file with another layer", lambda folder: file_of(grouped, folder)),
    ("MACs", "another stride", lambda folder: file_of(strided, folder)),
    ("MACs", "what merging makes dearer", lambda _: merged(lambda net: Padded(net, costs=True))),
    ("params", "fewer weights", lambda folder: file_of(grouped, folder)),
    ("stored numbers", "what merging stores more", lambda _: merged(Padded)),
    ("numbers", "a bias", lambda _: another(changed(lambda net: net.b.bias[0].add_(1e-3)))),
    ("numbers", "a statistic", lambda _: another(changed(lambda net: net.norm.running_var[0].mul_(1.01)))),
    ("numbers", "an eps", lambda _: another(changed(lambda net: setattr(net.norm, "eps", 1e-3)))),
    ("numbers", "a border", lambda _: another(Net(padding_mode="replicate"))),
    ("numbers", "a swapped channel", lambda _: another(changed(swap))),
    ("numbers", "what is no layer", lambda _: another(Net(shift=1e-3))),
    ("numbers", "NaN", lambda _: another(changed(lambda net: net.head.bias.fill_(torch.nan)))),
    ("numbers", "infinity", lambda _: another(changed(lambda net: net.head.bias[:1].fill_(torch.inf)))),
    (
        "numbers",
        "what is small beside others in one output",
        lambda _: given(lambda y: torch.cat([y[:, :1] * 1e6, y[:, 1:]], 1)),
    ),
    ("numbers", "a small output beside a large one", lambda _: given(lambda y: (y[:, :1] * 1e6, y[:, 1:]))),
    ("numbers", "beside a mask", lambda _: given(lambda y: torch.cat([y, torch.full_like(y, -1e9)], 1))),
    ("numbers", "under a constant", lambda _: given(lambda y: y * 0.01 + 1000)),
    ("numbers", "in float64", lambda _: given(lambda y: y, lambda y: y.double())),
    (
        "numbers",
        "an index beside numbers",
        lambda _: given(lambda y: (y, y.argmax(1) + 10**7), lambda y: (y, y.argmax(1) + 10**7 + 1)),
    ),
    (
        "numbers",
        "numbers beside half precision",
        lambda _: given(lambda y: (y, y.half()), lambda y: (y * 1.005, y.half())),
    ),
    (
        "numbers",
        "beside what rounds",
        lambda _: given(lambda y: (y, (y + 1e4) - 1e4), lambda y: (y * 1.0005, (y + 1e4) - 1e4)),
    ),
    ("numbers", "another dtype", lambda _: given(lambda y: y > 0, lambda y: (y > 0).float())),
    ("numbers", "a clip that is seldom reached", lambda _: another(Clips())),
    ("numbers", "another batch size", lambda _: given(lambda y: y * 1, lambda y: y if len(y) == 2 else 2 * y)),
    ("numbers", "another order of names", lambda _: given(lambda y: {"a": y, "b": -y}, lambda y: {"b": -y, "a": y})),
    ("numbers", "nothing at all", lambda _: given(lambda y: None)),
    ("numbers", "a row of a table", lambda _: rows()),
    ("numbers", "a candidate that does not run", lambda _: another(Net().double())),
    ("numbers", "a file that is right at one batch size", lambda folder: file_of(Net, folder, at_batch_two)),
    ("layers", "a recurrent layer in a file", lambda folder: file_of(Net, folder, recurrent)),
    ("numbers", "a weight in a file", lambda folder: file_of(Net, folder, nudge)),
    ("numbers", "after merging", lambda _: merged(Shifted)),
    ("input sizes", "a file of another size", by_command),
    ("inputs and outputs", "a file of another size", lambda folder: nbcompile.verify(relu(folder, 4), relu(folder, 5))),
]


@pytest.mark.parametrize(("name", "what", "plant"), PLANTED, ids=[f"{name}: {what}" for name, what, _ in PLANTED])
def test_a_planted_fault_is_found(name: str, what: str, plant: Callable[[Path], Verification], tmp_path: Path) -> None:
    found = plant(tmp_path)
    assert not found.passed
    assert name in {check.name for check in found.checks if not check.passed}


def test_what_is_right_passes(tmp_path: Path) -> None:
    """The plants above, without a fault."""
    for found in (another(Net()), another(copy.deepcopy(Net())), file_of(Net, tmp_path), merged(lambda net: net)):
        assert found.passed, [check for check in found.checks if not check.passed]


def test_every_check_has_a_planted_fault() -> None:
    assert set(named_checks()) == {name for name, _, _ in PLANTED}


def named_checks() -> Iterator[str]:
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Check":
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    yield str(first.value)
                else:  # of a loop over names
                    yield from ("MACs", "params")


def test_one_output_for_every_input_is_said() -> None:
    dead = changed(lambda net: net.head.weight.zero_())
    other = changed(lambda net: (net.head.weight.zero_(), net.b.weight.zero_()))
    numbers = nbcompile.verify(dead, other, X).checks[-1]
    assert numbers.passed
    assert numbers.detail.endswith(
        "the reference gives the same output for all of them, which shows little of its layers"
    )
    assert "the same output" not in another(Net()).checks[-1].detail
