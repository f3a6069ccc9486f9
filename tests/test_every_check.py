"""For every check that is printed as ok: something wrong is planted, and the check says so.

The names are found in the code, so that a check without a planted fault fails here.
"""

import ast
import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import nbcompile
from nbcompile.cli.run.verify import run_verify
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


def file_of(net: nn.Module, folder: Path, change: Callable[[onnx.ModelProto], object] | None = None) -> Verification:
    path = folder / "it.onnx"
    nbcompile.export(net.eval(), path, X)
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
    nbcompile.export(Net().eval(), folder / "it.onnx", X)
    return run_verify(str(folder / "it.onnx"), "nbcompile:dscnn", model=None, key=None, input_shape=None)


PLANTED: list[tuple[str, str, Callable[[Path], Verification]]] = [
    ("keys and shapes", "a key too many", lambda _: another(Padded(Net()))),
    ("keys and shapes", "another shape", lambda _: another(Net(groups=2))),
    ("keys and shapes", "a buffer that is gone", lambda _: another(changed(forget))),
    ("layers", "another stride", lambda _: another(Net(stride=2))),
    ("layers", "a file with another layer", lambda folder: file_of(Net(groups=2), folder)),
    ("MACs", "another stride", lambda folder: file_of(Net(stride=2), folder)),
    ("MACs", "what merging makes dearer", lambda _: merged(lambda net: Padded(net, costs=True))),
    ("params", "fewer weights", lambda folder: file_of(Net(groups=2), folder)),
    ("stored numbers", "what merging stores more", lambda _: merged(Padded)),
    ("numbers", "a bias", lambda _: another(changed(lambda net: net.b.bias[0].add_(1e-3)))),
    ("numbers", "a statistic", lambda _: another(changed(lambda net: net.norm.running_var[0].mul_(1.01)))),
    ("numbers", "an eps", lambda _: another(changed(lambda net: setattr(net.norm, "eps", 1e-3)))),
    ("numbers", "a border", lambda _: another(Net(padding_mode="replicate"))),
    ("numbers", "a swapped channel", lambda _: another(changed(swap))),
    ("numbers", "what is no layer", lambda _: another(Net(shift=1e-3))),
    ("numbers", "NaN", lambda _: another(changed(lambda net: net.head.bias.fill_(torch.nan)))),
    ("numbers", "infinity", lambda _: another(changed(lambda net: net.head.bias[:1].fill_(torch.inf)))),
    ("numbers", "a weight in a file", lambda folder: file_of(Net(), folder, nudge)),
    ("numbers", "after merging", lambda _: merged(Shifted)),
    ("input sizes", "a file of another size", by_command),
]  # fmt: skip


@pytest.mark.parametrize(("name", "what", "plant"), PLANTED, ids=[f"{name}: {what}" for name, what, _ in PLANTED])
def test_a_planted_fault_is_found(name: str, what: str, plant: Callable[[Path], Verification], tmp_path: Path) -> None:
    found = plant(tmp_path)
    assert not found.passed
    assert name in {check.name for check in found.checks if not check.passed}


def test_what_is_right_passes(tmp_path: Path) -> None:
    """The plants above, without a fault."""
    for found in (another(Net()), another(copy.deepcopy(Net())), file_of(Net(), tmp_path), merged(lambda net: net)):
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
