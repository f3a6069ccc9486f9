"""Views, selections, paddings and resizes: what moves elements and computes nothing, or hardly anything."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf
from nbcompile.exporters.to_tflite.lower.layout import Axis, along, axis_of, simplest
from nbcompile.exporters.to_tflite.lower.ops.convolution import IMAGE
from nbcompile.exporters.to_tflite.lower.refusal import LoweringError
from nbcompile.exporters.to_tflite.lower.value import Value, selected, stored_array
from nbcompile.exporters.to_tflite.lower.windows import padded


def view(x: Value, shape: Sequence[int]) -> Value:
    """Of another shape; one size may be -1."""
    sizes = list(shape)
    if -1 in sizes:
        sizes[sizes.index(-1)] = math.prod(x.shape) // -math.prod(sizes)
    return x.reshaped(sizes)


def permute(x: Value, dims: Sequence[int]) -> Value:
    """Dimensions in another order."""
    return x.permuted([d % x.rank for d in dims])


def transpose(x: Value, a: int = -2, b: int = -1) -> Value:
    """Dimensions ``a`` and ``b`` exchanged."""
    dims = list(range(x.rank))
    dims[a], dims[b] = dims[b], dims[a]
    return x.permuted(dims)


def squeeze(x: Value, dims: int | Sequence[int] | None = None) -> Value:
    """Without dimensions of size 1."""
    wanted = range(x.rank) if dims is None else [dims] if isinstance(dims, int) else dims
    return x.without({d % x.rank for d in wanted if x.shape[d] == 1})


def unsqueeze(x: Value, dim: int) -> Value:
    """With one dimension of size 1 more."""
    return x.with_dim(dim % (x.rank + 1))


def expand_sizes(x: Value, sizes: Sequence[int], *, implicit: bool = False) -> Value:
    """Repeated along dimensions of size 1."""
    x = x.widened(len(sizes))
    times = [1 if new == -1 else new // old for new, old in zip(sizes, x.shape, strict=True)]
    return repeat(x, times)


def repeat(x: Value, times: Sequence[int]) -> Value:
    """Repeated ``times`` along each dimension."""
    x = x.widened(len(times))
    many = [d for d, n in enumerate(times) if n != 1]
    if not many:
        return x
    x = x.arranged(x.order, free=[d for d in range(x.rank) if d not in many])
    shape = tuple(size * n for size, n in zip(x.shape, times, strict=True))
    axes = tuple(Axis((d,)) if d in many else axis for d, axis in zip(x.order, x.axes, strict=True))
    return Value(tf.tile(x.tensor, [times[d] for d in x.order]), shape, axes, x.nonnegative)


def slice_(x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Value:
    """Every ``step``-th element of ``dim`` from ``start`` to before ``end``."""
    dim %= x.rank
    chosen = range(*slice(start, end, step).indices(x.shape[dim]))
    return picked(x, dim, chosen)


def picked(x: Value, dim: int, chosen: Sequence[int]) -> Value:
    """The ``chosen`` elements of ``dim``, none twice, read from where they are stored, whatever their order."""
    if list(chosen) == list(range(x.shape[dim])):
        return x
    if not chosen:
        raise LoweringError(f"it takes no element of dimension {dim}", "remove the empty slice")
    shape = (*x.shape[:dim], len(chosen), *x.shape[dim + 1 :])
    at = next(i for i, axis in enumerate(x.axes) if dim in axis.dims)
    coordinates = x.axes[at].coordinates(x.shape)
    rank_of = {old: new for new, old in enumerate(chosen)}
    kept = np.flatnonzero(np.isin(coordinates[dim], list(chosen)))
    coordinates = {d: where[kept] for d, where in coordinates.items()}
    coordinates[dim] = np.array([rank_of[int(old)] for old in coordinates[dim]])
    dims = tuple(d for d in x.axes[at].dims if shape[d] != 1)
    axis = simplest(along(dims, coordinates, shape), shape)
    axes = (*x.axes[:at], axis, *x.axes[at + 1 :])
    return Value(selected(x.tensor, at, kept), shape, axes, x.nonnegative)


def select_index(x: Value, dim: int, index: int) -> Value:
    """Element ``index`` of ``dim``, which is gone after that."""
    dim %= x.rank
    return picked(x, dim, [index % x.shape[dim]]).without({dim})


def unbind(x: Value, dim: int = 0) -> list[Value]:
    """Every element of ``dim``."""
    return [select_index(x, dim, i) for i in range(x.shape[dim])]


def split(x: Value, sizes: int | Sequence[int], dim: int = 0) -> list[Value]:
    """Parts of ``dim``, of the given sizes or of one size."""
    total = x.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, total - start) for start in range(0, total, sizes)]
    stops = np.cumsum(sizes).tolist()
    return [slice_(x, dim, stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]


def cat(parts: Sequence[Value | Tensor], dim: int = 0) -> Value:
    """Side by side along ``dim``, stored as the largest of them is."""
    parts = [part for part in parts if math.prod(part.shape)]
    largest = max((part for part in parts if isinstance(part, Value)), key=lambda part: math.prod(part.shape))
    dim %= largest.rank
    order = largest.separated(free=range(largest.rank)).order
    at = order.index(dim)
    arranged = [part.arranged(order, (dim,)) if isinstance(part, Value) else part for part in parts]
    shape = [*largest.shape]
    shape[dim] = sum(part.shape[dim] for part in parts)
    axes = [axis_of(d, shape) for d in order]
    tensors, places, offset = [], [], 0
    for part in arranged:
        if isinstance(part, Value):
            tensors.append(part.tensor)
            places.append(part.axes[at].places(part.shape) + offset)
        else:
            tensors.append(stored_array(part.permute(order)))
            places.append(np.arange(part.shape[dim]) + offset)
        offset += part.shape[dim]
    if shape[dim] != 1:
        axes[at] = along((dim,), {dim: np.concatenate(places)}, shape)
    safe = all(part.nonnegative if isinstance(part, Value) else bool((part >= 0).all()) for part in parts)
    return Value(tf.concat(tensors, at), tuple(shape), tuple(axes), safe)


def stack(parts: Sequence[Value | Tensor], dim: int = 0) -> Value:
    """Side by side along a new dimension."""
    dim %= len(parts[0].shape) + 1
    return cat([part.with_dim(dim) if isinstance(part, Value) else part.unsqueeze(dim) for part in parts], dim)


def roll(x: Value, shifts: Sequence[int] | int, dims: Sequence[int] | int = ()) -> Value:
    """Shifted along ``dims``; what leaves at the end comes back at the start."""
    shifts = [shifts] if isinstance(shifts, int) else shifts
    dims = [dims] if isinstance(dims, int) else dims
    if not dims:
        return roll(x.reshaped((math.prod(x.shape),)), shifts, [0]).reshaped(x.shape)
    for shift, dim in zip(shifts, dims, strict=True):
        if cut := -shift % x.shape[dim]:
            x = cat([slice_(x, dim, cut), slice_(x, dim, 0, cut)], dim)
    return x


def flip(x: Value, dims: Sequence[int]) -> Value:
    """Backwards along ``dims``."""
    dims = [d % x.rank for d in dims]
    x = x.arranged(x.order, free=[d for d in range(x.rank) if d not in dims])
    return x.like(tf.reverse(x.tensor, x.positions(dims)), x.nonnegative)


def pad_edges(x: Value, pads: Sequence[int], mode: str = "constant", value: float | None = None) -> Value:
    """``pads``: before and after of the last dimension, then of the one before it, and so on; below 0: cropped."""
    pairs = [(0, 0)] * x.rank
    for i in range(len(pads) // 2):
        before, after = pads[2 * i], pads[2 * i + 1]
        dim = x.rank - 1 - i
        x = slice_(x, dim, max(-before, 0), x.shape[dim] - max(-after, 0))
        pairs[dim] = (max(before, 0), max(after, 0))
    if mode == "constant":
        return padded(x, pairs, value or 0.0)
    if mode == "reflect":
        return padded(x, pairs, mode="REFLECT")
    for dim, (before, after) in enumerate(pairs):
        size = x.shape[dim]
        if mode == "circular":
            parts = [slice_(x, dim, size - before) if before else None, x, slice_(x, dim, 0, after) if after else None]
        else:  # replicate
            first, last = picked(x, dim, [0]), picked(x, dim, [size - 1])
            parts = [*[first] * before, x, *[last] * after]
        x = cat([part for part in parts if part is not None], dim) if before or after else x
    return x


def nearest(x: Value, size: Sequence[int] | None, factors: Sequence[float] | None = None, exact: bool = False) -> Value:
    """One RESIZE_NEAREST_NEIGHBOR."""
    size = _target(x, size, factors)
    x = x.arranged(IMAGE, free=(1,))
    made = tf.raw_ops.ResizeNearestNeighbor(images=x.tensor, size=size, half_pixel_centers=exact)
    return _resized(x, made)


def bilinear(
    x: Value, size: Sequence[int] | None, align_corners: bool, factors: Sequence[float] | None = None
) -> Value:
    """One RESIZE_BILINEAR."""
    size = _target(x, size, factors)
    x = x.arranged(IMAGE, free=(1,))
    made = tf.raw_ops.ResizeBilinear(
        images=x.tensor, size=size, align_corners=align_corners, half_pixel_centers=not align_corners
    )
    return _resized(x, made)


def _target(x: Value, size: Sequence[int] | None, factors: Sequence[float] | None) -> list[int]:
    if size is not None:
        return list(size)
    assert factors is not None
    sizes = [math.floor(n * f) for n, f in zip(x.shape[2:], factors, strict=True)]
    if any(n * f != m for n, f, m in zip(x.shape[2:], factors, sizes, strict=True)):
        raise LoweringError(
            f"scale_factor={tuple(factors)} makes no whole size of {tuple(x.shape[2:])}",
            f"call interpolate with size={tuple(sizes)}",
        )
    return sizes


def _resized(x: Value, made: tf.Tensor) -> Value:
    shape = (*x.shape[:2], *made.shape[1:3])
    spatial = (axis_of(d, shape) for d in (2, 3))
    return Value(made, shape, (x.axes[0], *spatial, x.axes[3]), x.nonnegative)


def pixel_shuffle(x: Value, factor: int) -> Value:
    """One DEPTH_TO_SPACE; its channels are (row, column, channel) where PyTorch's are (channel, row, column)."""
    channels = x.shape[1] // factor**2
    x = x.reshaped((x.shape[0], channels, factor**2, *x.shape[2:])).permuted((0, 2, 1, 3, 4))
    x = x.reshaped((x.shape[0], channels * factor**2, *x.shape[3:])).arranged(IMAGE)
    made = tf.nn.depth_to_space(x.tensor, factor)
    shape = (x.shape[0], channels, x.shape[2] * factor, x.shape[3] * factor)
    return Value(made, shape, tuple(axis_of(d, shape) for d in IMAGE), x.nonnegative)


def pixel_unshuffle(x: Value, factor: int) -> Value:
    """One SPACE_TO_DEPTH, whose order of channels the next layer takes as it is."""
    x = x.arranged(IMAGE)
    made = tf.nn.space_to_depth(x.tensor, factor)
    channels = x.shape[1] * factor**2
    places = np.arange(channels).reshape(x.shape[1], -1).T.ravel()
    shape = (x.shape[0], channels, *made.shape[1:3])
    axes = [axis_of(d, shape) for d in IMAGE]
    axes[-1] = along((1,), {1: places}, shape)
    return Value(made, shape, tuple(axes), x.nonnegative)


def same(x: Value) -> Value:
    """The value itself: a copy means nothing in the file."""
    return x


def cast(x: Value, *, dtype: torch.dtype | None = None) -> Value:
    """The value itself where it stays floating point."""
    if dtype is not None and not dtype.is_floating_point and x.tensor.dtype.is_floating:
        raise LoweringError(f"it makes integers of floating-point values ({dtype})", "keep the values floating point")
    if dtype is not None and dtype.is_floating_point and not x.tensor.dtype.is_floating:
        return x.like(tf.cast(x.tensor, tf.float32))
    if dtype is not None and dtype != torch.bool and x.tensor.dtype.is_bool:
        return x.like(tf.cast(x.tensor, tf.int32))
    return x


def embedding(weight: Tensor, index: Value, *_: Any) -> Value:
    """One GATHER: the row of the table for each number."""
    index = index.arranged(range(index.rank))
    return Value.of(tf.gather(stored_array(weight), index.tensor))


SHAPE_OPS: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("view", "_unsafe_view"), view),
    "permute": permute,
    "transpose.int": transpose,
    "t": lambda x: transpose(x) if x.rank > 1 else x,
    **dict.fromkeys(("squeeze", "squeeze.dim", "squeeze.dims"), squeeze),
    "unsqueeze": unsqueeze,
    "expand": expand_sizes,
    "repeat": repeat,
    "slice.Tensor": slice_,
    "select.int": select_index,
    "unbind.int": unbind,
    **dict.fromkeys(("split.Tensor", "split_with_sizes"), split),
    "cat": cat,
    "stack": stack,
    "roll": roll,
    "flip": flip,
    "pad": pad_edges,
    "upsample_nearest2d.vec": nearest,
    "_upsample_nearest_exact2d.vec": lambda x, size, factors=None: nearest(x, size, factors, exact=True),
    "upsample_bilinear2d.vec": bilinear,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    **dict.fromkeys(("clone", "alias"), same),
    "_to_copy": cast,
    "embedding": embedding,
}
