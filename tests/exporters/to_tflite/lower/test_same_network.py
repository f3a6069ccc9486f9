"""A network that was captured is not captured again with other weights, and gives the file that it would give."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from nbcompile.exporters.to_tflite.lower import capture
from nbcompile.exporters.to_tflite.lower.lowering import float_model
from nbcompile.exporters.to_tflite.lower.same_network import differ_in_weights
from nbcompile.exporters.to_tflite.once import one_export


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)
        self.register_buffer("shift", torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head((self.conv(x) + self.shift).relu().mean((2, 3)))
        return y


def graph(seed: int) -> fx.GraphModule:
    torch.manual_seed(seed)
    return fx.symbolic_trace(Net()).eval()


def stride(gm: fx.GraphModule) -> None:
    gm.conv.stride = (2, 2)


def no_bias(gm: fx.GraphModule) -> None:
    gm.head.bias = None


def in_float64(gm: fx.GraphModule) -> None:
    gm.double()


def another_function(gm: fx.GraphModule) -> None:
    (node,) = (node for node in gm.graph.nodes if node.target == "relu")
    node.target = "sigmoid"
    gm.recompile()


def another_dimension(gm: fx.GraphModule) -> None:
    (node,) = (node for node in gm.graph.nodes if node.target == "mean")
    node.args = (node.args[0], (3, 2))
    gm.recompile()


def a_tensor_beside(gm: fx.GraphModule) -> None:
    gm.conv.seen = torch.zeros(2)


@pytest.mark.parametrize(
    "change",
    [stride, no_bias, in_float64, another_function, another_dimension, a_tensor_beside],
    ids=lambda f: f.__name__,
)
def test_more_than_weights_is_seen(change: Callable[[fx.GraphModule], None]) -> None:
    one, other = graph(0), graph(1)
    assert differ_in_weights(one, other)
    change(other)
    assert not differ_in_weights(one, other)
    assert not differ_in_weights(other, one)


def test_which_tensors_are_one_is_seen() -> None:
    one, other = graph(0), graph(1)
    for gm in (one, other):
        gm.twin = copy.deepcopy(gm.conv)
    assert differ_in_weights(one, other)
    other.twin.weight = other.conv.weight
    assert not differ_in_weights(one, other)


def test_the_file_is_that_of_a_capture_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    x = (torch.randn(1, 3, 7, 5),)
    first, second = graph(0), graph(1)
    alone = [float_model(gm, x).content for gm in (first, second)]
    captures = []
    program = capture._program
    monkeypatch.setattr(capture, "_program", lambda *args: captures.append(args) or program(*args))
    with one_export():
        together = [float_model(gm, x).content for gm in (first, second)]
    assert together == alone
    assert alone[0] != alone[1]
    assert len(captures) == 1
    stride(second)
    with one_export():
        assert float_model(first, x).content == alone[0]
        assert float_model(second, x).content != alone[1]
    assert len(captures) == 3
