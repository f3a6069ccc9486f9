"""Channels and sizes along a chain, and the smallest map that it takes."""

from typing import Any

import pytest
import torch
from torch import nn

from nbcompile.core.affine.evaluate import Outlines
from nbcompile.core.affine.map_sizes import LARGE_MAP, Walk
from nbcompile.core.affine.regions import Regions
from nbcompile.core.algebra import NotExact
from tests.core.affine.lifts import Written, conv, lifter


def walk(*layers: nn.Module, axes: int = 2) -> tuple[Walk, Any]:
    asked = lifter(nn.Sequential(*layers).double())
    (chain,) = Regions(asked).chains.values()
    return Walk(axes, Outlines(axes, asked)), chain.elements


@pytest.mark.parametrize(
    ("layers", "axes", "smallest"),
    [
        ([nn.Conv2d(4, 4, 1)], 2, 1),
        ([nn.Conv2d(4, 4, 3)], 2, 3),
        ([nn.Conv2d(4, 4, 3, padding=1)], 2, 1),
        ([nn.Conv2d(4, 4, (2, 7))], 2, 7),  # maps are square
        ([nn.Conv1d(4, 4, 3, 2), nn.Conv1d(4, 4, 5)], 1, 11),
        ([nn.Conv1d(4, 4, 3, dilation=4), nn.Conv1d(4, 4, 2, 3)], 1, 10),
        ([nn.ConvTranspose2d(4, 4, 3, 2, padding=2), nn.Conv2d(4, 4, 2)], 2, 3),
        ([nn.ConvTranspose1d(4, 4, 2, 2), nn.Conv1d(4, 4, 100)], 1, 50),
        ([nn.Linear(4, 4)], 0, 1),
    ],
)
def test_the_smallest_map_is_one_smaller_than_which_does_not_fit(
    layers: list[nn.Module], axes: int, smallest: int
) -> None:
    at, elements = walk(*layers, axes=axes)
    assert at.sizes_for(elements, 4) == ((max(LARGE_MAP, 4 * smallest),) * axes, (smallest,) * axes)
    x = torch.zeros(1, 4, *(smallest,) * axes, dtype=torch.float64)
    model = nn.Sequential(*layers)
    assert model(x).numel() > 0
    if smallest > 1:
        smaller = x[(slice(None),) * 2 + (slice(smallest - 1),) * axes]
        with pytest.raises(RuntimeError):
            model(smaller)


def test_a_large_map_is_larger_than_what_is_large_already() -> None:
    at, elements = walk(nn.Conv1d(4, 4, 57), axes=1)
    assert at.sizes_for(elements, 4) == ((228,), (57,))
    at, elements = walk(nn.Conv1d(4, 4, 56), axes=1)
    assert at.sizes_for(elements, 4) == ((224,), (56,))


def test_channels_and_sizes_before_every_element_and_after_the_last() -> None:
    at, elements = walk(nn.Conv2d(4, 6, 3, 2), nn.BatchNorm2d(6), nn.Conv2d(6, 2, (1, 3)))
    states = list(at.states(elements, 4, ((9, 8), (7, 7))))
    assert states == [
        (4, ((9, 8), (7, 7))),
        (6, ((4, 3), (3, 3))),
        (6, ((4, 3), (3, 3))),
        (2, ((4, 1), (3, 1))),
    ]


@pytest.mark.parametrize(("dim", "width"), [(None, 6), (-3, 12)])
def test_branches_end_alike(dim: int | None, width: int) -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        both = m.a(x), m.c(m.b(x))
        return both[0] + both[1] if dim is None else torch.cat(both, dim)

    asked = lifter(Written(forward, a=conv(3, 4, 6, padding=0), b=conv(1, 4, 8), c=conv(3, 8, 6, padding=0)))
    (chain,) = Regions(asked).chains.values()
    states = list(Walk(2, Outlines(2, asked)).states(chain.elements, 4, ((9, 8), (3, 3))))
    assert states == [(4, ((9, 8), (3, 3))), (width, ((7, 6), (1, 1)))]


def test_layers_that_do_not_fit_each_other() -> None:
    at, elements = walk(nn.Conv2d(4, 8, 1), nn.Conv2d(4, 4, 1))
    with pytest.raises(NotExact, match=r"^'1' takes 4 channels and gets 8$"):
        at.sizes_for(elements, 4)
    with pytest.raises(NotExact, match=r"^'0' takes 4 channels and gets 3$"):
        at.sizes_for(elements, 3)
