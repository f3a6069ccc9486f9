from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.errors import PreconditionError
from nbcompile.core.graph.shapes import Shapes
from tests.symbolic import capture


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        self.count.add_(1)
        y = self.conv(x) + torch.rand(1)
        return y.argmax(1), y.shape


def test_shapes_and_dtypes_leave_no_trace() -> None:
    model = Net()
    gm, x = capture(model), torch.randn(2, 3, 7, 5)
    state = torch.get_rng_state()
    nodes = {node.name: node for node in gm.graph.nodes}
    shapes = Shapes(gm, (x,))
    assert shapes.of(nodes["conv"]) == (2, 4, 5, 3)
    assert (shapes.of(nodes["argmax"]), shapes.dtype(nodes["argmax"])) == ((2, 5, 3), torch.int64)
    assert (shapes.of(nodes["getattr_1"]), shapes.dtype(nodes["getattr_1"])) == (None, None)
    assert float(model.count) == 0
    assert model.training
    assert torch.equal(state, torch.get_rng_state())


def test_unknown() -> None:
    gm = capture(Net())
    assert {Shapes(gm, None).of(node) for node in gm.graph.nodes} == {None}


def test_inputs_that_do_not_fit() -> None:
    gm = capture(Net())
    with pytest.raises(PreconditionError, match="does not run on the example input: RuntimeError"):
        Shapes(gm, (torch.randn(2, 9, 7, 5),)).of(next(iter(gm.graph.nodes)))
