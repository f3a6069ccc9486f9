"""How a value is stored: which of PyTorch's dimensions each axis of the stored tensor holds, and in what order.

A permutation only renames dimensions, and a reshape only regroups them; both are free, because nothing is moved until
an operator asks for an order of its own. So maps stay channels-last from the input to the classifier, a flatten after
a map becomes an order of the columns of the next linear layer, and a channel shuffle an order of the next
convolution's input channels.

Dimensions of size 1, the batch among them, are held by no axis: wherever they stand, they cost nothing.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np


@dataclass(frozen=True)
class Axis:
    """One axis of a stored tensor.

    Attributes:
        dims: those of PyTorch's dimensions whose elements lie along it; none for an axis of size 1.
        index: for each position along it, the place of its element if ``dims`` were flattened, the last one running
            fastest; None: in just that order.
    """

    dims: tuple[int, ...] = ()
    index: tuple[int, ...] | None = None

    def size(self, shape: Sequence[int]) -> int:
        """Its size, where PyTorch's shape is ``shape``."""
        return math.prod(shape[d] for d in self.dims)

    def places(self, shape: Sequence[int]) -> np.ndarray:
        """``index``, also where it is in order."""
        return np.arange(self.size(shape)) if self.index is None else np.asarray(self.index)

    def coordinates(self, shape: Sequence[int]) -> dict[int, np.ndarray]:
        """For each of ``dims``, its coordinate at each position."""
        if not self.dims:
            return {}
        sizes = [shape[d] for d in self.dims]
        return dict(zip(self.dims, np.unravel_index(self.places(shape), sizes), strict=True))


Axes = tuple[Axis, ...]


def torch_axes(shape: Sequence[int]) -> Axes:
    """The axes of a tensor that is stored as PyTorch has it."""
    return tuple(axis_of(d, shape) for d in range(len(shape)))


def axis_of(dim: int | None, shape: Sequence[int]) -> Axis:
    """The axis that holds ``dim`` in order; of size 1 if there is nothing to hold."""
    return Axis() if dim is None or shape[dim] == 1 else Axis((dim,))


def held(axes: Axes) -> tuple[int, ...]:
    """The dimensions that ``axes`` hold, in the order in which they are stored."""
    return tuple(d for axis in axes for d in axis.dims)


def along(dims: Sequence[int], coordinates: Mapping[int, np.ndarray], shape: Sequence[int]) -> Axis:
    """The axis that holds ``dims``, in this order, with ``coordinates`` along it."""
    if not dims:
        return Axis()
    index = np.ravel_multi_index([coordinates[d] for d in dims], [shape[d] for d in dims])
    ordered = bool((index == np.arange(len(index))).all())
    return Axis(tuple(dims), None if ordered else tuple(index.tolist()))


def simplest(axis: Axis, shape: Sequence[int]) -> Axis:
    """``axis``, its dims in the order that needs no index, if there is one."""
    if axis.index is None or len(axis.dims) == 1:
        return axis
    coordinates = axis.coordinates(shape)
    candidates = (along(order, coordinates, shape) for order in permutations(axis.dims))
    return next((ordered for ordered in candidates if ordered.index is None), axis)


def merged(axes: Axes, shape: Sequence[int]) -> Axis:
    """The one axis that neighbouring ``axes`` make."""
    sizes = [axis.size(shape) for axis in axes]
    grids = np.unravel_index(np.arange(math.prod(sizes)), sizes)
    coordinates = {
        d: places[grid] for axis, grid in zip(axes, grids, strict=True) for d, places in axis.coordinates(shape).items()
    }
    return along(held(axes), coordinates, shape)


def renamed(axis: Axis, names: dict[int, int]) -> Axis:
    """``axis`` with its dims called ``names[dim]``."""
    return Axis(tuple(names[d] for d in axis.dims), axis.index)


def digits(index: Sequence[int]) -> list[tuple[int, int]] | None:
    """``index`` as the counting of digits: sizes and strides, the fastest last; None if it is no such counting.

    Every transposition is one: ``(0, 3, 1, 4, 2, 5)`` has digits ``(3, 1), (2, 3)``.
    """
    left, stored = np.asarray(index), 1
    counters: list[tuple[int, int]] = []
    while stored < len(index):
        firsts = left[::stored]
        stride = int(firsts[1] - firsts[0])
        breaks = np.flatnonzero(np.diff(firsts) != stride)
        size = int(breaks[0]) + 1 if len(breaks) else len(firsts)
        counters.insert(0, (size, stride))
        stored *= size
    counted = sum(
        grid * stride for grid, (_, stride) in zip(np.indices([size for size, _ in counters]), counters, strict=True)
    )
    return counters if np.array_equal(np.ravel(counted), left) else None


def runs(positions: np.ndarray) -> list[tuple[int, int]]:
    """``positions`` as neighbours that follow each other: pairs of start and stop."""
    breaks = np.flatnonzero(np.diff(positions) != 1) + 1
    parts = np.split(positions, breaks)
    return [(int(part[0]), int(part[-1]) + 1) for part in parts if len(part)]


def groups(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """How a reshape regroups dimensions: the smallest runs of old and new ones with the same number of elements.

    Dimensions of size 1 are in none.
    """
    left = [d for d, size in enumerate(old) if size != 1]
    right = [d for d, size in enumerate(new) if size != 1]
    while left or right:
        ds, es = [left.pop(0)], [right.pop(0)]
        while (have := math.prod(old[d] for d in ds)) != (want := math.prod(new[d] for d in es)):
            if have < want:
                ds.append(left.pop(0))
            else:
                es.append(right.pop(0))
        yield tuple(ds), tuple(es)
