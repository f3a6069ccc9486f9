"""The cost law: what a part of a region costs, and when one layer would cost more."""

from dataclasses import dataclass, field
from functools import lru_cache
from math import prod

from nbcompile.core.algebra import Geometry

TwoSizes = tuple[tuple[int, ...], ...]
"""Spatial sizes of one value: on a large map, and on the smallest that its region can take."""


@dataclass(frozen=True, order=True)
class Expense:
    """What a part of a region costs; of two, the one with fewer multiply-accumulates is less, and so on.

    Attributes:
        macs: multiply-accumulates per sample, on the large map and on the smallest.
        weights: stored numbers, without those below.
        nodes: of the graph.
        vectors: numbers stored per channel: biases, factors, two a channel of a frozen norm. They may not grow, but
            make nothing less: a norm would leave the layer that it normalises for the one behind, to save a bias.
    """

    macs: tuple[int, int] = (0, 0)
    weights: int = 0
    nodes: int = 0
    vectors: int = field(default=0, compare=False)

    @property
    def stored(self) -> int:
        """All stored numbers."""
        return self.weights + self.vectors

    def __add__(self, other: "Expense") -> "Expense":
        """The cost of both."""
        macs = (self.macs[0] + other.macs[0], self.macs[1] + other.macs[1])
        return Expense(macs, self.weights + other.weights, self.nodes + other.nodes, self.vectors + other.vectors)

    def grows(self, other: "Expense") -> str | None:
        """In what ``self`` costs more than ``other``, in words, or None."""
        for ours, theirs in zip(self.macs, other.macs, strict=True):
            if ours > theirs:
                times = f"{ours / theirs:.3g} times the" if theirs else f"{ours:,}"
                return f"one layer would take {times} multiply-accumulates"
        if self.stored > other.stored:
            return f"one layer would store {self.stored:,} numbers, they {other.stored:,}"
        return None


@lru_cache(maxsize=4096)
def one_layer(geometry: Geometry, sizes: TwoSizes) -> Expense:
    """What one layer of this geometry costs on maps of these sizes; a linear layer has no groups."""
    weights = geometry.weights * (1 if geometry.axes else geometry.groups)
    large, small = (
        weights * prod(size if geometry.transposed else geometry.sizes(size)) for size in (sizes[0], sizes[-1])
    )
    return Expense((large, small), weights, 1, geometry.outputs if geometry.bias else 0)
