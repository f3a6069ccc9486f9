"""What the tests of lifting, regions and lowering share: a network as a function of its layers, and its graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from nbcompile.core.affine.lifter import Lifter
from nbcompile.core.affine.primitive import Primitive
from nbcompile.core.graph.shapes import Shapes
from nbcompile.testing import scramble_
from tests.symbolic import capture

X = torch.randn(2, 4, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Written(nn.Module):
    def __init__(self, forward: Callable[[Any, Tensor], Any], **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            if isinstance(layer, Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)
        self.written = forward
        self.dtype = nn.Parameter(torch.zeros(()))  # says what the network computes in
        scramble_(self).double().eval()

    def forward(self, x: Tensor) -> Any:
        return self.written(self, x)


def conv(kernel: int = 1, inputs: int = 4, outputs: int = 4, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": kernel // 2, **options})


def lifter(model: nn.Module, x: Tensor | None = None) -> Lifter:
    gm = capture(model)
    return Lifter(gm, Shapes(gm, None if x is None else (x,)))


def nodes(asked: Lifter) -> list[fx.Node]:
    return [node for node in asked.gm.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]


def found(model: nn.Module, x: Tensor | None = None) -> dict[str, Primitive | str | None]:
    """What each node is lifted to, by name."""
    asked = lifter(model, x)
    return {node.name: asked.lift(node) for node in nodes(asked) if node not in asked.constants}


def last(forward: Callable[[Any, Tensor], Any], x: Tensor | None = None, **layers: Any) -> Primitive | str | None:
    """What the last node is lifted to."""
    return list(found(Written(forward, **layers), x).values())[-1]


def primitive(forward: Callable[[Any, Tensor], Any], x: Tensor | None = None, **layers: Any) -> Primitive:
    """The same, where it is affine."""
    one = last(forward, x, **layers)
    assert isinstance(one, Primitive), one
    return one
