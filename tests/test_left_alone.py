"""Networks whose forward writes, keeps and draws, or reads the tensors of what merges: no verb changes them.

That nothing is changed, the watch in ``tests/unchanged.py`` says; what verbs return is looked at here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nbcompile
from nbcompile.core.copies import copied
from nbcompile.core.errors import NBCompileError
from nbcompile.core.numerics import relative_error
from nbcompile.core.running import output_of
from nbcompile.expansion import candidates
from nbcompile.report.collect import report_on
from nbcompile.report.errors_by_layer import per_layer_error
from nbcompile.testing import scramble_

X = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions with norms, and a forward that is given."""

    def __init__(self, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.n.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 1.0]), persistent=False)
        self.b, self.m = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.register_buffer("count", torch.zeros(()))
        self.log: list[Any] = []
        self.own = forward
        scramble_(self)

    def first(self, x: Tensor) -> Tensor:
        y: Tensor = self.n(self.a(x))
        return y

    def rest(self, x: Tensor) -> Tensor:
        y: Tensor = self.m(self.b(x.relu()))
        return y

    def forward(self, x: Tensor) -> Any:
        return self.own(self, x)


def _per_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def _border(m: Net, x: Tensor) -> Tensor:
    y = m.first(x)
    padded = F.pad(torch.zeros_like(y), (1, 1, 1, 1)) + _per_channel(m.n.bias)
    padded[:, :, 1:-1, 1:-1] = y
    return m.rest(padded)


READS: dict[str, Callable[[Net, Tensor], Any]] = {
    "a weight as a gate": lambda m, x: m.rest(m.first(x) * _per_channel(m.n.weight.sigmoid())),
    "a weight returned": lambda m, x: (m.rest(m.first(x)), m.n.weight),
    "a mean": lambda m, x: m.rest(m.first(x)) + _per_channel(m.n.running_mean),
    "a bias in a border": _border,
    "a mask that no file holds": lambda m, x: m.rest(m.first(x)) * _per_channel(m.n.mask),
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("example", [None, X])
def test_a_tensor_of_what_merges_is_read(name: str, example: Tensor | None) -> None:
    model = Net(READS[name])
    wanted = output_of(copied(model, training=False), (X,))
    tiny = nbcompile.fuse(model, example_input=example)
    assert relative_error(output_of(tiny, (X,)), wanted) <= 1e-5
    assert not any(isinstance(module, nn.BatchNorm2d) for module in tiny.modules())
    mine, theirs = ({id(x) for x in (*m.parameters(), *m.buffers(), *m.modules())} for m in (model, tiny))
    assert not mine & theirs


def _in_place(m: Net, x: Tensor) -> Tensor:
    x.sub_(0.5).mul_(2)
    return m.rest(m.first(x))


def _item(m: Net, x: Tensor) -> Tensor:
    x[:, 0] = 0
    return m.rest(m.first(x))


def _counted(m: Net, x: Tensor) -> Tensor:
    m.count += 1
    return m.rest(m.first(x))


def _kept(m: Net, x: Tensor) -> Tensor:
    if not hasattr(m, "ramp"):
        m.ramp = torch.ones_like(x)
    m.size = x.shape[2:]
    return m.rest(m.first(x * m.ramp))


def _logged(m: Net, x: Tensor) -> Tensor:
    m.log.append(x.shape)
    return m.rest(m.first(x))


def _constrained(m: Net, x: Tensor) -> Tensor:
    m.b.weight.data = torch.renorm(m.b.weight.data, 2, 0, 0.5)  # EEGNet's
    m.n.weight.data.clamp_(0, 0.5)
    return m.rest(m.first(x))


def _drawn(m: Net, x: Tensor) -> Tensor:
    return m.rest(m.first(x + torch.rand_like(x)))


def _failing(m: Net, x: Tensor) -> Tensor:
    m.size = x.shape
    raise ValueError("the network's own")


HABITS = {
    f.__name__.lstrip("_"): f for f in (_in_place, _item, _counted, _kept, _logged, _constrained, _drawn, _failing)
}

VERBS: dict[str, Callable[[nn.Module, Tensor, Path], Any]] = {
    "fuse": lambda m, x, _: nbcompile.fuse(m),
    "fuse with an example": lambda m, x, _: nbcompile.fuse(m, example_input=x, verify_each=True),
    "expand": lambda m, x, _: nbcompile.expand(m, x, "all"),
    "candidates": lambda m, x, _: candidates(m, x),
    "the error of every layer": lambda m, x, _: per_layer_error(m, copied(m), x),
    "a report": lambda m, x, _: report_on("t", "c", m, x),
    "cost": lambda m, x, _: nbcompile.cost(m, x),
    "verify": lambda m, x, _: nbcompile.verify(m, copied(m), x, inputs=[x]),
    "save": lambda m, x, folder: nbcompile.save(m, folder / "model.pt", x),
    "export": lambda m, x, folder: nbcompile.export(m, folder / "model.onnx", x),
}


@pytest.mark.parametrize("training", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("habit", HABITS)
def test_what_a_forward_does_is_done_to_copies(habit: str, verb: str, training: bool, tmp_path: Path) -> None:
    model, x = Net(HABITS[habit]).train(training), X.clone()
    try:
        VERBS[verb](model, x, tmp_path)
    except NBCompileError as error:
        said = str(error)
    else:
        said = ""
    if habit == "failing":
        assert "the network's own" in said or verb in ("fuse", "save", "a report")  # which can do without running it
    elif verb in ("cost", "verify", "save"):
        assert not said


def test_outputs_are_compared_on_equal_inputs() -> None:
    model = Net(_in_place).eval()
    nbcompile.verify(model, copied(model), X, inputs=[X]).raise_on_failure()
