from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbcompile.core.affine.lifter import Lifter
from nbcompile.core.graph.ranks import BATCHED, DIMENSIONS, least_dimensions
from nbcompile.core.graph.shapes import Shapes
from tests.core.affine.lifts import Written, conv
from tests.symbolic import capture

FACTOR = torch.rand(1, 4, 1, 1)


def least(forward: Callable[[Any, Tensor], Any], known: int | None = None, **layers: Any) -> int:
    """What the last node is seen to have."""
    gm = capture(Written(forward, conv=conv(), norm=nn.BatchNorm2d(4), f=FACTOR, **layers))
    if known is not None:
        next(iter(gm.graph.nodes)).meta[DIMENSIONS] = known
    (output,) = gm.graph.find_nodes(op="output")
    return least_dimensions(gm, Lifter(gm, Shapes(gm, None)).constants)[output.args[0]]


@pytest.mark.parametrize(
    ("forward", "dimensions"),
    [
        (lambda m, x: m.conv(x), 0),
        (lambda m, x: m.conv(m.norm(x)), BATCHED),
        (lambda m, x: F.relu(m.conv(F.batch_norm(x, m.norm.running_mean, m.norm.running_var))), BATCHED),
        (lambda m, x: m.conv(x) * m.f, 4),
        (lambda m, x: m.pool(m.act(m.f - m.conv(x))) / 2 + x, 4),
        (lambda m, x: F.conv2d(x, m.w), 0),  # four dimensions of the weight, not of the map
        (lambda m, x: F.conv2d(x * m.f, m.w), 4),
        (lambda m, x: (x * m.f).flatten(1), 2),
        (lambda m, x: torch.flatten(x), 0),
        (lambda m, x: m.flatten(m.norm(x)), 2),
        (lambda m, x: m.norm(x)[0], 0),
        (lambda m, x: m.norm(x).squeeze(), 0),
        (lambda m, x: m.norm(x).mean((2, 3)), 0),
        (lambda m, x: m.indices(m.norm(x)), 0),
        (lambda m, x: m.bilinear(m.norm(x), x), 0),
    ],
)
def test_what_shows_dimensions(forward: Callable[[Any, Tensor], Any], dimensions: int) -> None:
    layers: dict[str, Any] = {
        "flatten": nn.Flatten(),
        "pool": nn.MaxPool2d(2),
        "act": nn.ReLU(),
        "indices": nn.MaxPool2d(2, return_indices=True),
    }
    assert least(forward, w=torch.rand(4, 4, 1, 1), bilinear=nn.Bilinear(4, 4, 4), **layers) == dimensions


@pytest.mark.parametrize("known", [3, 4])
def test_what_a_placeholder_says(known: int) -> None:
    assert least(lambda m, x: m.conv(x).relu(), known) == known
