"""Small networks of affine nodes, drawn at random: what regions, evaluation and plans must be right about."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from nbcompile.core.graph.shapes import Shapes
from nbcompile.testing import scramble_
from tests.symbolic import capture

X = torch.randn(2, 4, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
ONE: dict[str, Callable[[Any, str, Tensor], Tensor]] = {
    "conv": lambda m, name, x: getattr(m, name)(x),
    "padded": lambda m, name, x: getattr(m, name)(x),
    "grouped": lambda m, name, x: getattr(m, name)(x),
    "norm": lambda m, name, x: getattr(m, name)(x),
    "factor": lambda m, name, x: x * getattr(m, name),
    "shift": lambda m, name, x: getattr(m, name) - x,
    "swap": lambda m, name, x: torch.cat([x[:, 2:], x[:, :2]], 1),
    "relu": lambda m, name, x: F.relu(x),
    "shape": lambda m, name, x: x.view(x.shape),
}
TWO: dict[str, Callable[[Any, str, Tensor, Tensor], Tensor]] = {
    "add": lambda m, name, x, y: x + y,
    "sub": lambda m, name, x, y: x - y,
    "half": lambda m, name, x, y: torch.add(x, y, alpha=0.5),
    "cat": lambda m, name, x, y: getattr(m, name)(torch.cat([x, y], 1)),
}
LAYERS: dict[str, Callable[[], Any]] = {
    "conv": lambda: nn.Conv2d(4, 4, 1),
    "padded": lambda: nn.Conv2d(4, 4, 3, padding=1, bias=False),
    "grouped": lambda: nn.Conv2d(4, 4, (1, 3), padding=(0, 1), groups=2, padding_mode="reflect"),
    "norm": lambda: nn.BatchNorm2d(4),
    "factor": lambda: nn.Parameter(0.5 + torch.rand(4, 1, 1)),
    "shift": lambda: nn.Parameter(torch.rand(4, 1, 1)),
    "cat": lambda: nn.Conv2d(8, 4, 1),
}


@dataclass(frozen=True)
class Step:
    """One operator; ``reads`` count back from the newest value."""

    kind: str
    reads: tuple[int, ...]


class Drawn(nn.Module):
    """A network of such steps; what nothing reads is summed up behind a ReLU each."""

    def __init__(self, steps: tuple[Step, ...]) -> None:
        super().__init__()
        self.steps = steps
        for i, step in enumerate(steps):
            if step.kind in LAYERS:
                setattr(self, f"{step.kind}{i}", LAYERS[step.kind]())
        scramble_(self).double().eval()

    def forward(self, x: Tensor) -> Tensor:
        values, read = [x], set()
        for i, step in enumerate(self.steps):
            at = [max(0, len(values) - 1 - back) for back in step.reads]
            read |= set(at)
            rule: Any = ONE.get(step.kind) or TWO[step.kind]
            values.append(rule(self, f"{step.kind}{i}", *[values[n] for n in at]))
        unread = [F.silu(v) for n, v in enumerate(values) if n not in read and n < len(values) - 1]
        return values[-1] if not unread else torch.stack([values[-1], *unread]).sum(0)


@st.composite
def networks(draw: st.DrawFn, most: int = 7) -> Drawn:
    steps = []
    for _ in range(draw(st.integers(2, most))):
        kind = draw(st.sampled_from((*ONE, "conv", "padded", "norm", "add", "add", *TWO)))
        back = st.sampled_from((0, 0, 0, 1, 1, 2, 3))
        steps.append(Step(kind, tuple(draw(back) for _ in range(2 if kind in TWO else 1))))
    return Drawn(tuple(steps))


def run(model: nn.Module) -> tuple[fx.GraphModule, Shapes, dict[fx.Node, Any]]:
    """The graph, the shapes on :data:`X`, and the value of every node there."""
    gm = capture(model)
    values: dict[fx.Node, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            values[n] = super().run_node(n)
            return values[n]

    with torch.no_grad():
        Recorder(gm).run(X)
    return gm, Shapes(gm, (X,)), values
