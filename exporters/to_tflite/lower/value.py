"""Values of the lowering: a TensorFlow tensor, PyTorch's shape of it, and how the one is stored in the other."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf
from nbcompile.exporters.to_tflite.lower.layout import (
    Axes,
    Axis,
    along,
    digits,
    groups,
    held,
    merged,
    renamed,
    runs,
    simplest,
    torch_axes,
)

MOST_SLICES = 8
"""Pieces that a selection along an axis is put together from; more of them are one GATHER."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the file that is being made.

    Attributes:
        tensor: as it is stored.
        shape: as PyTorch has it; the batch is 1.
        axes: of ``tensor``: what each of them holds.
        nonnegative: whether no value of it can be below 0.
        padded: where it came from, if it is nothing but zeros around another value: that one, and how many
            (before, after) in each of PyTorch's dimensions.
    """

    tensor: tf.Tensor
    shape: tuple[int, ...]
    axes: Axes
    nonnegative: bool = False
    padded: "tuple[Value, tuple[tuple[int, int], ...]] | None" = None

    def __post_init__(self) -> None:
        """Check that the tensor has the size of its axes."""
        stored, sizes = tuple(self.tensor.shape), tuple(axis.size(self.shape) for axis in self.axes)
        assert stored == sizes, f"stored as {stored}, not {sizes}"

    @classmethod
    def of(cls, tensor: tf.Tensor) -> "Value":
        """A value that is stored as PyTorch has it."""
        shape = tuple(tensor.shape)
        return cls(tensor, shape, torch_axes(shape))

    def like(self, tensor: tf.Tensor, nonnegative: bool = False) -> "Value":
        """A value of the same shape, stored in the same way."""
        return Value(tensor, self.shape, self.axes, nonnegative)

    @property
    def rank(self) -> int:
        """How many dimensions PyTorch sees."""
        return len(self.shape)

    @cached_property
    def order(self) -> tuple[int, ...]:
        """All dimensions in the order in which they are stored."""
        single = [d for d in range(self.rank) if self.shape[d] == 1]
        if len(single) == sum(not axis.dims for axis in self.axes):
            left = iter(single)
            return tuple(d for axis in self.axes for d in (axis.dims or (next(left),)))
        stored = list(held(self.axes))
        for d in single:
            stored.insert(next((i for i, other in enumerate(stored) if other > d), len(stored)), d)
        return tuple(stored)

    # Free: nothing is moved.

    def permuted(self, dims: Sequence[int]) -> "Value":
        """Dimension ``i`` of the result is dimension ``dims[i]``."""
        names = {d: i for i, d in enumerate(dims)}
        axes = tuple(renamed(axis, names) for axis in self.axes)
        return replace(self, shape=tuple(self.shape[d] for d in dims), axes=axes, padded=None)

    def without(self, dims: Collection[int]) -> "Value":
        """Without ``dims``, which have size 1."""
        kept = [d for d in range(self.rank) if d not in dims]
        names = {d: i for i, d in enumerate(kept)}
        axes = tuple(renamed(axis, names) for axis in self.axes)
        return replace(self, shape=tuple(self.shape[d] for d in kept), axes=axes, padded=None)

    def with_dim(self, dim: int) -> "Value":
        """With a new dimension ``dim`` of size 1."""
        names = {d: d + (d >= dim) for d in range(self.rank)}
        axes = tuple(renamed(axis, names) for axis in self.axes)
        return replace(self, shape=(*self.shape[:dim], 1, *self.shape[dim:]), axes=axes, padded=None)

    def widened(self, rank: int) -> "Value":
        """With dimensions of size 1 in front, up to ``rank``."""
        value = self
        while value.rank < rank:
            value = value.with_dim(0)
        return value

    def reshaped(self, shape: Sequence[int]) -> "Value":
        """Of PyTorch's shape ``shape``; free but where dimensions that are not stored side by side become one."""
        value, grouped = self, list(groups(self.shape, shape))
        for ds, _ in grouped:
            together = value._together(ds)
            if together is None:
                return self.arranged(range(self.rank)).reshaped(shape)
            value = together
        names = {ds[0]: es for ds, es in grouped}
        axes = tuple(
            simplest(Axis(tuple(e for d in axis.dims for e in names.get(d, ())), axis.index), shape)
            for axis in value.axes
        )
        return replace(value, shape=tuple(shape), axes=axes, padded=None)

    def _together(self, ds: tuple[int, ...]) -> "Value | None":
        """With ``ds`` in one axis, one after the other; None if they are stored apart."""
        if len(ds) == 1:
            return self
        holding = [i for i, axis in enumerate(self.axes) if set(axis.dims) & {*ds}]
        first, last = holding[0], holding[-1]
        if any(axis.dims for i, axis in enumerate(self.axes[first:last], first) if i not in holding):
            return None
        one = merged(self.axes[first : last + 1], self.shape)
        at = min(one.dims.index(d) for d in ds)
        others = [d for d in one.dims if d not in ds]
        one = along((*others[:at], *ds, *others[at:]), one.coordinates(self.shape), self.shape)
        return self._stored((*self.axes[:first], one, *self.axes[last + 1 :]))

    def _stored(self, axes: Axes) -> "Value":
        """The same elements in the same order along other ``axes``."""
        sizes = [axis.size(self.shape) for axis in axes]
        tensor = self.tensor if sizes == self.tensor.shape else tf.reshape(self.tensor, sizes)
        return replace(self, tensor=tensor, axes=axes)

    # What an operator asks for; moves elements only where they are not so already.

    def arranged(self, order: Sequence[int | None], free: Collection[int] = ()) -> "Value":
        """Stored with one dimension per axis.

        Args:
            order: the dimension that each axis is to hold; None: an axis of size 1 that holds none.
            free: dimensions whose elements may stay in whatever order they are in (`Axis.index`).
        """
        value = self.separated(free)
        stored = [axis for axis in value.axes if axis.dims]
        by_dim = {axis.dims[0]: axis for axis in stored}
        wanted = [by_dim.get(-1 if d is None else d, Axis()) for d in order]
        missing = {*by_dim} - {*order}
        assert not missing, f"dimensions {missing} have no axis"
        if stored == [axis for axis in wanted if axis.dims]:
            return value._stored(tuple(wanted))
        if len(wanted) != len(value.axes):
            value = value._stored((*(Axis(),) * (len(wanted) - len(stored)), *stored))
        empty = iter([i for i, axis in enumerate(value.axes) if not axis.dims])
        moves = [value.axes.index(axis) if axis.dims else next(empty) for axis in wanted]
        return replace(value, tensor=tf.transpose(value.tensor, moves), axes=tuple(wanted))

    def separated(self, free: Collection[int] = ()) -> "Value":
        """With at most one dimension per axis, in order; those that are alone and ``free`` in whatever order."""
        value = self
        for i in reversed(range(len(self.axes))):
            axis = value.axes[i]
            if len(axis.dims) == 1 and axis.dims[0] in free:
                continue
            value = value._sorted(i)
            split = tuple(Axis((d,)) for d in value.axes[i].dims) or (Axis(),)
            value = value._stored((*value.axes[:i], *split, *value.axes[i + 1 :]))
        return value

    def _sorted(self, i: int) -> "Value":
        """With the elements along axis ``i`` in order."""
        axis = self.axes[i]
        if axis.index is None:
            return self
        axes = (*self.axes[:i], Axis(axis.dims), *self.axes[i + 1 :])
        counters = digits(axis.index)
        if counters is None:
            inverse = np.argsort(axis.index)
            return replace(self, tensor=selected(self.tensor, i, inverse), axes=axes)
        sizes = list(self.tensor.shape)
        slowest_first = sorted(range(len(counters)), key=lambda digit: -counters[digit][1])
        # What is around is one axis each: TFLite Micro transposes no more than five.
        around = math.prod(sizes[:i]), math.prod(sizes[i + 1 :])
        split = tf.reshape(self.tensor, [around[0], *(size for size, _ in counters), around[1]])
        moved = tf.transpose(split, [0, *(1 + digit for digit in slowest_first), 1 + len(counters)])
        return replace(self, tensor=tf.reshape(moved, sizes), axes=axes)

    def parted(self, dims: Collection[int]) -> "Value":
        """With no axis that holds some of ``dims`` and some others."""
        value = self
        mixed = [axis for axis in self.axes if 0 < len({*axis.dims} & {*dims}) < len(axis.dims)]
        return value.separated(free=range(self.rank)) if mixed else value

    def positions(self, dims: Collection[int]) -> list[int]:
        """The axes of a `parted` value that hold ``dims``."""
        return [i for i, axis in enumerate(self.axes) if {*axis.dims} & {*dims}]

    def aligned(self, shape: Sequence[int], axes: Axes) -> tf.Tensor | None:
        """What a value of ``shape``, stored along ``axes``, can be combined with element by element.

        Returns:
            This value's tensor, with size 1 where it is to be repeated; None if it has no such form.
        """
        value = self.widened(len(shape))
        wanted: list[Axis] = []
        for axis in axes:
            own = [d for d in axis.dims if value.shape[d] != 1]
            if own and len(own) != len(axis.dims):
                return None
            wanted.append(axis if own else Axis())
        if [a for a in wanted if a.dims] != [a for a in value.axes if a.dims]:
            if any(axis.index is not None for axis in wanted):
                return None
            value = value.arranged(held(tuple(wanted)))
        return value._stored(tuple(wanted)).tensor


def constant(x: Tensor, shape: Sequence[int], axes: Axes) -> np.ndarray:
    """A constant as it is stored beside a value of ``shape`` along ``axes``: size 1 where it is repeated.

    Axes of size 1 in front are left out.
    """
    x = x.detach().reshape((1,) * (len(shape) - x.ndim) + x.shape)
    for axis in axes:
        if any(x.shape[d] != 1 for d in axis.dims):
            x = x.expand([shape[d] if d in axis.dims else size for d, size in enumerate(x.shape)])
    order = held(axes)
    x = x.permute([*order, *(d for d in range(x.ndim) if d not in order)])
    x = x.reshape([math.prod(shape[d] for d in axis.dims) if _varies(x, axis, order) else 1 for axis in axes])
    for i, axis in enumerate(axes):
        if axis.index is not None and x.shape[i] != 1:
            x = x.index_select(i, torch.tensor(axis.index))
    while x.ndim and x.shape[0] == 1:
        x = x[0]
    return stored_array(x)


def _varies(x: Tensor, axis: Axis, order: tuple[int, ...]) -> bool:
    return any(x.shape[order.index(d)] != 1 for d in axis.dims)


def stored_array(x: Tensor) -> np.ndarray:
    """``x`` as files hold it: float32 if it is floating point, else as it is."""
    x = x.detach()
    return np.ascontiguousarray((x.float() if x.is_floating_point() else x).numpy())


def selected(tensor: tf.Tensor, axis: int, positions: np.ndarray) -> tf.Tensor:
    """The elements at ``positions`` along an axis: one slice, a few of them side by side, or a GATHER."""
    size = tensor.shape[axis]
    step = int(positions[1] - positions[0]) if len(positions) > 1 else 1
    if step > 0 and np.array_equal(positions, np.arange(positions[0], positions[-1] + 1, step)):
        return sliced(tensor, axis, int(positions[0]), int(positions[-1]) + 1, step)
    pieces = runs(positions)
    if len(pieces) <= min(MOST_SLICES, size // 2):
        return tf.concat([sliced(tensor, axis, start, stop) for start, stop in pieces], axis)
    return tf.gather(tensor, positions.astype(np.int32), axis=axis)


def sliced(tensor: tf.Tensor, axis: int, start: int, stop: int, step: int = 1) -> tf.Tensor:
    """Positions ``start`` to ``stop`` along one axis."""
    if (start, stop, step) == (0, tensor.shape[axis], 1):
        return tensor
    return tensor[(*(slice(None),) * axis, slice(start, stop, step))]


def elementwise(f: Callable[..., tf.Tensor], *operands: "Value | Tensor") -> Value:
    """``f`` of values and constants, one of them a value, in the layout of a value that has the result's shape."""
    shape = np.broadcast_shapes(*(tuple(x.shape) for x in operands))
    host = next((x for x in operands if isinstance(x, Value) and tuple(x.shape) == shape), None)
    if host is None:  # each is repeated along some dimension: all as PyTorch has them
        tensors = [x.arranged(range(x.rank)).tensor if isinstance(x, Value) else stored_array(x) for x in operands]
        return Value.of(f(*tensors))
    stored = [host.tensor if x is host else _beside(x, shape, host.axes) for x in operands]
    if any(tensor is None for tensor in stored):
        apart = host.separated()
        stored = [apart.tensor if x is host else _beside(x, shape, apart.axes) for x in operands]
        host = apart
    return Value(f(*stored), shape, host.axes)


def _beside(x: "Value | Tensor", shape: Sequence[int], axes: Axes) -> tf.Tensor | np.ndarray | None:
    return constant(x, shape, axes) if isinstance(x, Tensor) else x.aligned(shape, axes)
