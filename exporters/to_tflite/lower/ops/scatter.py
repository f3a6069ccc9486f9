"""What indices choose, what is written into a part of a value, and the order of elements along a dimension."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf
from nbcompile.exporters.to_tflite.lower.layout import axis_of
from nbcompile.exporters.to_tflite.lower.ops.elementwise import where
from nbcompile.exporters.to_tflite.lower.ops.shape import cat, expand_sizes, picked, repeat
from nbcompile.exporters.to_tflite.lower.refusal import LoweringError
from nbcompile.exporters.to_tflite.lower.value import Value


def index(x: Value | Tensor, indices: Sequence[Value | Tensor | None]) -> Value:
    """``x[:, [2, 0, 1]]``, in one dimension or several, at constant places."""
    given = [(dim, chosen) for dim, chosen in enumerate(_of_masks(indices)) if chosen is not None]
    constant = [chosen.numpy() for _, chosen in given if isinstance(chosen, Tensor)]
    if isinstance(x, Tensor) or len(constant) < len(given):
        raise LoweringError("it takes elements at places that it computes", _CONSTANT)
    dims = [dim for dim, _ in given]
    places = np.broadcast_arrays(*constant)
    if dims != list(range(dims[0], dims[-1] + 1)):  # PyTorch puts those that are apart in front
        x = x.permuted([*dims, *(d for d in range(x.rank) if d not in dims)])
        dims = list(range(len(dims)))
    before, sizes, after = x.shape[: dims[0]], x.shape[dims[0] : dims[-1] + 1], x.shape[dims[-1] + 1 :]
    flat = np.ravel_multi_index([p % n for p, n in zip(places, sizes, strict=True)], sizes)
    taken = taken_along(x.reshaped((*before, math.prod(sizes), *after)), dims[0], flat.ravel().tolist())
    return taken.reshaped((*before, *places[0].shape, *after))


def _of_masks(indices: Sequence[Value | Tensor | None]) -> Iterator[Value | Tensor | None]:
    """Numbers for each dimension of a mask."""
    for chosen in indices:
        if isinstance(chosen, Tensor) and chosen.dtype == torch.bool:
            yield from chosen.nonzero(as_tuple=True)
        else:
            yield chosen


def taken_along(x: Value, dim: int, places: Sequence[int]) -> Value:
    """The elements of ``dim`` at ``places``: a new order costs nothing, and repeated elements one GATHER."""
    size = x.shape[dim]
    if len(set(places)) == len(places):
        return picked(x, dim, places)
    if size == 1:
        return repeat(x, [len(places) if d == dim else 1 for d in range(x.rank)])
    x = x.separated(free=[d for d in range(x.rank) if d != dim])
    (at,) = x.positions((dim,))
    shape = (*x.shape[:dim], len(places), *x.shape[dim + 1 :])
    return Value(tf.gather(x.tensor, np.asarray(places, np.int32), axis=at), shape, x.axes, x.nonnegative)


def index_select(x: Value, dim: int, places: Value | Tensor) -> Value:
    """The elements of one dimension at constant places."""
    return index(x, [None] * (dim % x.rank) + [places])


def gather(x: Value, dim: int, places: Value | Tensor, **_: Any) -> Value:
    """For every element of ``places``, that of ``x`` which differs from it in one dimension only."""
    if isinstance(places, Value):
        raise LoweringError("it takes elements at places that it computes", _CONSTANT)
    grid = torch.meshgrid(*map(torch.arange, places.shape), indexing="ij")
    return index(x, [places if d == dim % x.rank else coordinates for d, coordinates in enumerate(grid)])


def slice_scatter(
    x: Value | Tensor,
    part: Value | Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Value | Tensor:
    """``x`` with every ``step``-th element of ``dim`` from ``start`` to before ``end`` replaced."""
    dim %= len(x.shape)
    size = x.shape[dim]
    written = list(range(*slice(start, end, step).indices(size)))
    if not written:
        return x
    if len(written) == size:
        return part
    before, after = range(written[0]), range(written[-1] + 1, size)
    if len(written) == written[-1] + 1 - written[0]:  # side by side
        return cat([_some(x, dim, before), part, _some(x, dim, after)], dim)
    others = [place for place in range(size) if place not in set(written)]
    joined = cat([_some(x, dim, others), part], dim)
    order = sorted(range(size), key=[*others, *written].__getitem__)
    return picked(joined, dim, order)


def select_scatter(x: Value | Tensor, part: Value | Tensor, dim: int, place: int) -> Value | Tensor:
    """``x`` with one element of ``dim`` replaced."""
    dim %= len(x.shape)
    place %= x.shape[dim]
    wide = part.with_dim(dim) if isinstance(part, Value) else part.unsqueeze(dim)
    return slice_scatter(x, wide, dim, place, place + 1)


def copied_into(x: Value | Tensor, source: Value | Tensor, *_: Any) -> Value | Tensor:
    """``source``, repeated to the shape of ``x``."""
    if isinstance(source, Tensor):
        return source.expand(tuple(x.shape))
    return expand_sizes(source, tuple(x.shape))


def cumsum(x: Value, dim: int, *, dtype: torch.dtype | None = None) -> Value:
    """One CUMSUM."""
    dim %= x.rank
    x = x.separated(free=[d for d in range(x.rank) if d != dim])
    places = x.positions((dim,))
    return x.like(tf.cumsum(x.tensor, places[0]), x.nonnegative) if places else x


def sort(x: Value, dim: int = -1, descending: bool = False) -> list[Value]:
    """Values and their places: one TOPK_V2 of all, of the negative for an ascending order."""
    return topk(x, x.shape[dim], dim, descending)


def topk(x: Value, count: int, dim: int = -1, largest: bool = True, *_: Any) -> list[Value]:
    """Values and their places, the first one first: one TOPK_V2."""
    dim %= x.rank
    others = [d for d in x.order if d != dim]
    x = x.arranged((*others, dim), free=others)
    values, places = tf.math.top_k(x.tensor if largest else -x.tensor, count)
    shape = (*x.shape[:dim], count, *x.shape[dim + 1 :])
    axes = (*x.axes[:-1], axis_of(dim, shape))
    return [Value(y, shape, axes) for y in (values if largest else -values, tf.cast(places, tf.int64))]


def full_like(x: Value, fill: float, *, dtype: torch.dtype | None = None) -> Tensor:
    """A constant: only the shape of ``x`` is looked at."""
    kind = dtype or (torch.float32 if x.tensor.dtype.is_floating else None)
    return torch.full(x.shape, fill, dtype=kind)


def _some(x: Value | Tensor, dim: int, places: Sequence[int]) -> Value | Tensor:
    if isinstance(x, Tensor):
        return x.index_select(dim, torch.tensor(list(places), dtype=torch.long))
    return picked(x, dim, places) if len(places) else torch.empty([0 if d == dim else n for d, n in enumerate(x.shape)])


_CONSTANT = "choose with slices, or at constant places"


def put_where(
    x: Value, indices: Sequence[Value | Tensor | None], value: Value | Tensor, accumulate: bool = False
) -> Value:
    """``x[mask] = value`` for one number; also ``x[:, places] = value``, where the places are constant."""
    if accumulate or math.prod(value.shape) != 1:
        raise LoweringError("it writes many numbers where numbers say", _WRITE)
    if not any(isinstance(places, Value) for places in indices):
        constant_mask = torch.zeros(x.shape, dtype=torch.bool)
        at: Any = tuple(slice(None) if places is None else places for places in indices)
        constant_mask[at] = True
        return where(constant_mask, value, x)
    mask = indices[0]
    if len(indices) != 1 or mask is None or not _is_mask(mask):
        raise LoweringError("it writes where numbers say", _WRITE)
    shape = (*mask.shape, *(1,) * (x.rank - len(mask.shape)))
    return where(mask.reshaped(shape) if isinstance(mask, Value) else mask.reshape(shape), value, x)


def _is_mask(x: Value | Tensor) -> bool:
    return bool(x.tensor.dtype.is_bool) if isinstance(x, Value) else x.dtype == torch.bool


_WRITE = "write slices, or one number where a mask of all elements is set"

SCATTER_OPS: Mapping[str, Callable[..., Any]] = {
    "index.Tensor": index,
    "index_put": put_where,
    "index_select": index_select,
    "gather": gather,
    "slice_scatter": slice_scatter,
    "select_scatter": select_scatter,
    "copy": copied_into,
    "cumsum": cumsum,
    "full_like": full_like,
    "sort": sort,
    "topk": topk,
}
