"""Channels and map sizes along a chain.

Multiply-accumulates depend on the size of the map, which a graph does not say: a merge must pay on the smallest map
that the region can take and on a large one.
"""

from collections.abc import Iterator

from nbcompile.core.affine.cost_law import TwoSizes
from nbcompile.core.affine.evaluate import Element, Outlines
from nbcompile.core.affine.primitive import Primitive
from nbcompile.core.algebra import NotExact

LARGE_MAP = 224
"""Size per axis of the large map; of larger ones where the smallest is large already, four times that."""


class Walk:
    """From element to element of chains that have one number of spatial axes.

    Args:
        axes: that number.
        outlines: geometries of elements.
    """

    def __init__(self, axes: int, outlines: Outlines) -> None:
        self._axes = axes
        self._outlines = outlines

    def sizes_for(self, elements: tuple[Element, ...], channels: int) -> TwoSizes:
        """A large map, and the smallest that every layer of ``elements`` can take."""
        low, high = 0, 1  # what fits on a map fits on every larger one: double, then halve the interval
        while not self._fits(elements, channels, high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._fits(elements, channels, middle) else (middle, high)
        return (max(LARGE_MAP, 4 * high),) * self._axes, (high,) * self._axes

    def _fits(self, elements: tuple[Element, ...], channels: int, side: int) -> bool:
        try:
            list(self.states(elements, channels, ((side,) * self._axes,)))
        except _TooSmall:
            return False
        return True

    def states(self, elements: tuple[Element, ...], channels: int, sizes: TwoSizes) -> Iterator[tuple[int, TwoSizes]]:
        """Channels and sizes before every element, and after the last."""
        yield channels, sizes
        for element in elements:
            channels, sizes = self._after(element, channels, sizes)
            yield channels, sizes

    def _after(self, element: Element, channels: int, sizes: TwoSizes) -> tuple[int, TwoSizes]:
        if isinstance(element, Primitive):
            geometry = self._outlines.of(element, channels)
            if geometry.inputs != channels:
                raise NotExact(f"'{element.name}' takes {geometry.inputs} channels and gets {channels}")
            after = tuple(geometry.sizes(size) for size in sizes)
            if any(side < 1 for size in after for side in size):
                raise _TooSmall
            return geometry.outputs, after
        ends = [list(self.states(branch.elements, channels, sizes))[-1] for branch in element.branches]
        return (ends[0][0] if element.dim is None else sum(width for width, _ in ends)), ends[0][1]


class _TooSmall(Exception):  # noqa: N818 - a verdict
    """A map of this size is smaller than a kernel."""
