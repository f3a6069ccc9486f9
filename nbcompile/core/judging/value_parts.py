"""Which values of a floating-point output are judged together: those of like size, along every one of its dimensions.

What was joined into one output, a channel, a sample, what lies under a constant or beside a mask of -1e9: whatever is
so much smaller than the rest that an error in it would not be seen there is a part of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from nbcompile.core.judging.channel_groups import GAP, by_size, channels_named

_DOUBLINGS = 17
"""Between the sizes of two values that no other value lies between: 1e5 times, behind which an error is lost."""

_NOUGHT = -1100
"""Stands for the exponent of 0; those of float64 are above it."""

_AXES = {0: "sample", 1: "channel"}


@dataclass(frozen=True, eq=False)
class ValuePart:
    """Values of one output that are judged together.

    Attributes:
        name: in words; empty for the whole output.
        where: which values, in the output's shape; None: all.
        axis: the dimension that it has only some places of; None: all of it.
        places: these.
        size: how far its values spread, in the output's unit: what an error in it is relative to.
        largest: its largest absolute value.
    """

    name: str
    where: Tensor | None
    axis: int | None
    places: tuple[int, ...]
    size: float
    largest: float

    def most(self, apart: Tensor) -> float:
        """The largest of differences (in the output's shape) that is in this part."""
        if self.where is not None:
            apart = apart.where(self.where, 0.0)
        if self.axis is not None:
            apart = apart.index_select(self.axis, torch.tensor(self.places))
        return float(apart.max()) if apart.numel() else 0.0


def value_parts(y: Tensor) -> list[ValuePart]:
    """The whole output first, then what in it is smaller by ``GAP`` times or more.

    Args:
        y: the output, sample by sample: ``(N, *shape)``, float64; values that are not finite are in no part.
    """
    largest = _largest(y.where(y.isfinite(), 0.0))
    parts = [ValuePart("", None, None, (), largest, largest)]
    for name, where in _by_size(y):
        held = y.where(where, 0.0)
        size = _largest(held)
        if size * GAP <= largest:
            parts.append(ValuePart(name, where, None, (), size, size))
        for axis in range(y.ndim):
            parts += (part for part in _along(held, where, axis) if part.size * GAP <= largest)
    return parts


def _largest(y: Tensor) -> float:
    return float(y.abs().max()) if y.numel() else 0.0


def _by_size(y: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The values in groups: between the sizes of two groups is a gap."""
    there = y.isfinite()
    held = y.where(there, 0.0)
    sizes = torch.frexp(held).exponent.where(held != 0, _NOUGHT)
    known = [n + _NOUGHT for n in torch.bincount(sizes.flatten() - _NOUGHT).nonzero().flatten().tolist() if n]
    edges = [high for low, high in pairwise(known) if high - low > _DOUBLINGS]
    if not edges:
        yield "", there
        return
    for number, edge in enumerate((*edges, None)):
        above = sizes >= edges[number - 1] if number else torch.ones_like(there)
        below = sizes < edge if edge is not None else torch.ones_like(there)
        where = there & above & below
        yield f"values of at most {_largest(y.where(where, 0.0)):.0e}", where


def _along(held: Tensor, where: Tensor, axis: int) -> Iterator[ValuePart]:
    """Groups of like size of what lies at ``where``, along one dimension."""
    if held.shape[axis] < 2 or held.ndim < 2 or not held.numel():
        return
    others = tuple(i for i in range(held.ndim) if i != axis)
    low, high = held.where(where, torch.inf).amin(others), held.where(where, -torch.inf).amax(others)
    largest = torch.maximum(low.abs(), high.abs()).where(low <= high, 0.0)
    spread = (high - low).where(low < high, largest)  # a constant is as large as it is
    sizes = torch.minimum(spread, largest)
    for group in by_size(sizes.tolist(), max(float(largest.max()), 1e-300)):
        what = _AXES.get(axis, "place")
        name = channels_named(group, what) if len(group) < held.shape[axis] else f"what varies in each {what}"
        size, most = (float(x[group].max()) for x in (sizes, largest))
        yield ValuePart(name + (f" of dimension {axis}" if axis > 1 else ""), where, axis, tuple(group), size, most)
