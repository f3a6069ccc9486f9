"""What is said to commute with factors, node by node, against what happens to the numbers; and what is multiplied."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from nbcompile.core.graph.factors import commutes_anywhere, commutes_on_maps, gated_value
from nbcompile.core.graph.shapes import Shapes
from tests.symbolic import capture

X = torch.randn(2, 4, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
S = torch.tensor([0.3, 1.0, 2.7, 5.1], dtype=torch.float64)[:, None, None]


class Net(nn.Module):
    def __init__(self, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.given = forward if isinstance(forward, nn.Module) else None
        self.written = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written(x) if self.given is None else self.given(x)


def last(forward: Callable[..., Tensor]) -> tuple[fx.GraphModule, fx.Node]:
    gm = capture(Net(forward).double().eval())
    (output,) = gm.graph.find_nodes(op="output")
    return gm, output.args[0]


@pytest.mark.parametrize(
    ("forward", "anywhere", "on_maps"),
    [
        (nn.ReLU(), True, False),
        (nn.LeakyReLU(-0.2), True, False),
        (nn.PReLU(4), True, False),
        (lambda x: F.leaky_relu_(x.clone(), -0.2), True, False),
        (lambda x: x.clamp(min=0), True, False),
        (lambda x: -x, True, False),
        (nn.Dropout(), True, False),
        (nn.MaxPool2d(3, 2, 1), False, True),
        (nn.LPPool2d(2, 3), False, True),
        (nn.ReplicationPad2d(2), False, True),
        (nn.ConstantPad2d(2, 0.0), False, True),
        (nn.Upsample(scale_factor=2, mode="bilinear"), False, True),
        (lambda x: F.adaptive_avg_pool2d(x, 3), False, True),
        (lambda x: F.pad(x, (1, 0, 2, 0)), False, True),
        (lambda x: F.pad(x, (1, 1, 2, 2), "reflect"), False, True),
        (lambda x: x.mean((2, 3), keepdim=True), False, True),
    ],
)
def test_what_commutes(forward: Callable[..., Tensor], anywhere: bool, on_maps: bool) -> None:
    gm, node = last(forward)
    assert (commutes_anywhere(gm, node), commutes_on_maps(gm, node, 4)) == (anywhere, on_maps)
    torch.testing.assert_close(gm(S * X), S * gm(X), rtol=1e-12, atol=1e-12)


class Doubled(nn.MaxPool2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + (2 if input.isfinite().all() else 1)


@pytest.mark.parametrize(
    "forward",
    [
        *(nn.GELU(), nn.ELU(), nn.Sigmoid(), nn.Softplus(), nn.Hardtanh(0.5, 1.0), nn.RReLU(), nn.Threshold(0.1, 0.0)),
        *(nn.ConstantPad2d(1, 1.0), nn.BatchNorm2d(4), nn.LayerNorm(5), nn.Softmax(1), nn.GLU(1), Doubled(2)),
        *(nn.FractionalMaxPool2d(2, 3), nn.Flatten(), nn.PixelShuffle(2), nn.LocalResponseNorm(2)),
        *(lambda x: x + 1, lambda x: x.abs().log(), lambda x: x.clamp(-1, 1), lambda x: F.dropout(x, 0.5, True)),
        *(lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), lambda x: F.pad(x, (1, 1), value=2.0), lambda x: x.mean()),
        *(lambda x: x.mean(1), lambda x: x.mean((-1, -3)), lambda x: x.sum((2, 3)), lambda x: x.flip(1)),
    ],
)
def test_what_is_not_known_to_commute(forward: Callable[..., Tensor]) -> None:
    gm, node = last(forward)
    assert not commutes_anywhere(gm, node)
    assert not commutes_on_maps(gm, node, 4)


def test_a_hook_may_do_anything() -> None:
    for module in (nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), nn.ReLU6()):
        module.register_forward_hook(lambda _, __, y: y + 1)
        gm, node = last(module)
        assert not (commutes_anywhere(gm, node))
        assert not (commutes_on_maps(gm, node, 4))


@pytest.mark.parametrize(
    ("forward", "gated"),
    [
        (lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)), "x"),
        (lambda x: F.hardsigmoid(x).mul(x.relu()), "relu"),
        (lambda x: x * x.tanh(), None),
        (lambda x: x.mean((2, 3), keepdim=True) * x.sigmoid(), None),
        (lambda x: x.sigmoid() * x.sigmoid(), None),
        (lambda x: x + x.sigmoid(), None),
        (lambda x: x * 2, None),
    ],
)
def test_gates(forward: Callable[..., Tensor], gated: str | None) -> None:
    gm, node = last(forward)
    value: Any = gated_value(gm, node, Shapes(gm, (X,)))
    assert (value and value.name) == gated
