"""Pools and reductions."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf
from nbcompile.exporters.to_tflite.lower.layout import Axis
from nbcompile.exporters.to_tflite.lower.ops.convolution import IMAGE, SEQUENCE
from nbcompile.exporters.to_tflite.lower.ops.shape import cat, pad_edges, slice_
from nbcompile.exporters.to_tflite.lower.refusal import LoweringError
from nbcompile.exporters.to_tflite.lower.value import Value, elementwise
from nbcompile.exporters.to_tflite.lower.windows import Window, padded, scheme

WindowSizes = int | Sequence[int]


def max_pool(
    x: Value,
    kernel: WindowSizes,
    stride: WindowSizes = (),
    padding: WindowSizes = 0,
    dilation: WindowSizes = 1,
    ceil: bool = False,
) -> Value:
    """One MAX_POOL_2D; a PAD before it only where neither SAME nor VALID is PyTorch's padding.

    What is padded must never win: zeros do not where nothing is below 0. Elsewhere elements are repeated that the
    same window holds already: mirrored as far as half a window, the last one beyond that.
    """
    if set(_pair(dilation, x)) != {1}:
        raise LoweringError(f"its windows are dilated ({dilation})", "use dilation=1; TFLite's pools have no other")
    windows = _windows(x, kernel, stride, padding, ceil)
    name = scheme(windows)
    if name is None:
        pads = [(0, 0), (0, 0), *((w.before, w.after) for w in windows)]
        if x.nonnegative:
            x = padded(x, pads)
        elif all(2 * max(w.before, w.after) <= w.kernel for w in windows):
            x = padded(x, pads, mode="SYMMETRIC")
        else:
            x = pad_edges(x, [n for pair in reversed(pads) for n in pair], "replicate")
    x = x.arranged(_order(x), free=(1,))
    kernels, strides = ([1] * (4 - x.rank) + [getattr(w, key) for w in windows] for key in ("kernel", "stride"))
    return _pooled(x, tf.nn.max_pool2d(x.tensor, kernels, strides, name or "VALID"), windows)


def avg_pool(
    x: Value,
    kernel: WindowSizes,
    stride: WindowSizes = (),
    padding: WindowSizes = 0,
    ceil: bool = False,
    count_padding: bool = True,
    divisor: int | None = None,
) -> Value:
    """One AVERAGE_POOL_2D; where PyTorch divides by other numbers than TFLite, times a constant map."""
    windows = _windows(x, kernel, stride, padding, ceil)
    name = scheme(windows)
    counts = [_counts(window, pad, count_padding) for window, pad in zip(windows, _pair(padding, x), strict=True)]
    ours = [_counts(window, 0, False) for window in windows]
    area = math.prod(window.kernel for window in windows)
    ratio: np.ndarray | None = None
    if name != "SAME" or divisor is not None or not all(map(np.array_equal, counts, ours)):
        if name != "VALID":
            x, name = padded(x, [(0, 0), (0, 0), *((w.before, w.after) for w in windows)]), "VALID"
        divided = np.asarray(math.prod(np.ix_(*counts)) if divisor is None else divisor)
        ratio = np.asarray(area / divided, np.float32) if (divided != area).any() else None
    x = x.arranged(_order(x), free=(1,))
    kernels, strides = ([1] * (4 - x.rank) + [getattr(w, key) for w in windows] for key in ("kernel", "stride"))
    made = tf.nn.avg_pool2d(x.tensor, kernels, strides, name)
    if ratio is not None:
        made = made * ratio[..., None]
    return _pooled(x, made, windows)


def adaptive_avg_pool(x: Value, size: WindowSizes) -> Value:
    """A mean; pools of one size; or, where PyTorch's windows differ in size, the mean of each."""
    return _adaptive(x, size, avg_pool, mean)


def adaptive_max_pool(x: Value, size: WindowSizes) -> list[Value]:
    """Like `adaptive_avg_pool`; PyTorch's second result, the places of the maxima, cannot be had."""
    return [_adaptive(x, size, max_pool, amax)]


def _adaptive(x: Value, size: WindowSizes, pool: Callable[..., Value], reduced: Callable[..., Value]) -> Value:
    old = x.shape[2:]
    new = [n if want is None else want for n, want in zip(old, _pair(size, x), strict=True)]
    if set(new) != {1} and all(n % want == 0 for n, want in zip(old, new, strict=True)):
        return pool(x, [n // want for n, want in zip(old, new, strict=True)])
    if set(new) == {1}:
        return reduced(x, range(2, x.rank), keepdim=True)
    for d, n, want in zip(range(2, x.rank), old, new, strict=True):
        if n != want:
            parts = [slice_(x, d, i * n // want, -(-(i + 1) * n // want)) for i in range(want)]
            x = cat([reduced(part, [d], keepdim=True) for part in parts], d)
    return x


def reduction(f: Callable[..., tf.Tensor]) -> Callable[..., Value]:
    """The handler of a reduction over dimensions."""

    def reduce(x: Value, dims: WindowSizes | None = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
        given = range(x.rank) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
        over = {d % x.rank for d in given}
        x = x.parted(over)
        at = x.positions(over)
        made = f(x.tensor, axis=at, keepdims=keepdim) if at else x.tensor
        shape = tuple(1 if d in over else n for d, n in enumerate(x.shape))
        axes = tuple(Axis() if i in at else axis for i, axis in enumerate(x.axes) if keepdim or i not in at)
        pooled = Value(made, shape, axes, x.nonnegative)
        return pooled if keepdim else pooled.without(over)

    return reduce


mean = reduction(tf.reduce_mean)
amax = reduction(tf.reduce_max)
amin = reduction(tf.reduce_min)
every = reduction(tf.reduce_all)
sum_of = reduction(tf.reduce_sum)


def total(x: Value, dims: WindowSizes | None = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    """One SUM; of booleans their number."""
    return sum_of(x.like(tf.cast(x.tensor, tf.int32)) if x.tensor.dtype.is_bool else x, dims, keepdim)


def some(x: Value, dims: WindowSizes | None = None, keepdim: bool = False) -> Value:
    """Whether any is true: not all are false, since TFLite Micro has no REDUCE_ANY."""
    none = every(x.like(tf.logical_not(x.tensor)), dims, keepdim)
    return none.like(tf.logical_not(none.tensor))


def product(x: Value, dim: int, keepdim: bool = False, *, dtype: Any = None) -> Value:
    """Half times half, until one is left: TFLite Micro has no REDUCE_PROD."""
    dim %= x.rank
    while (size := x.shape[dim]) > 1:
        half = size // 2
        made = elementwise(tf.multiply, slice_(x, dim, 0, half), slice_(x, dim, half, 2 * half))
        x = cat([made, slice_(x, dim, 2 * half)], dim) if size % 2 else made
    return x if keepdim else x.without({dim})


def log_sum_exp(x: Value, dims: WindowSizes, keepdim: bool = False) -> Value:
    """The largest and the logarithm of the sum of ``exp`` of the differences from it, which are at most 1."""
    largest = amax(x, dims, keepdim=True)
    below = elementwise(tf.subtract, x, largest)
    logs = sum_of(below.like(tf.exp(below.tensor)), dims, keepdim=True)
    made = elementwise(tf.add, logs.like(tf.math.log(logs.tensor)), largest)
    over = [dims] if isinstance(dims, int) else dims
    return made if keepdim else made.without({d % x.rank for d in over})


def position_of(f: Callable[..., tf.Tensor]) -> Callable[..., Value]:
    """The handler of where the largest, or least, element of a dimension is, the first one of equals: one ARG_MAX."""

    def placed(x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
        if dim is None:
            found = placed(x.reshaped((math.prod(x.shape),)), 0)
            return found.widened(x.rank) if keepdim else found
        dim %= max(x.rank, 1)
        x = x.separated(free=[d for d in range(x.rank) if d != dim])
        at = next(iter(x.positions((dim,))), None)
        if at is None:  # of one element
            made = tf.zeros(x.tensor.shape, tf.int32)
        else:
            made = tf.expand_dims(f(x.tensor, axis=at, output_type=tf.int32), at)
        shape = tuple(1 if d == dim else n for d, n in enumerate(x.shape))
        found = Value(made, shape, tuple(Axis() if i == at else axis for i, axis in enumerate(x.axes)))
        return found if keepdim else found.without({dim})

    return placed


argmax, argmin = position_of(tf.argmax), position_of(tf.argmin)


def max_along(x: Value, dim: int, keepdim: bool = False) -> list[Value]:
    """The largest elements, and their places."""
    return [amax(x, dim, keepdim), argmax(x, dim, keepdim)]


def min_along(x: Value, dim: int, keepdim: bool = False) -> list[Value]:
    """The least elements, and their places."""
    return [amin(x, dim, keepdim), argmin(x, dim, keepdim)]


def var(x: Value, dims: Any = None, *, correction: float | None = 1, keepdim: bool = False) -> Value:
    """Mean of the squared differences from the mean, over the count less ``correction``."""
    over = list(range(x.rank)) if dims is None else [dims] if isinstance(dims, int) else list(dims)
    x = x.parted({d % x.rank for d in over})
    centre = mean(x, over, keepdim=True)
    squares = x.like(tf.math.squared_difference(x.tensor, centre.aligned(x.shape, x.axes)), nonnegative=True)
    variance = mean(squares, over, keepdim)
    count = math.prod(x.shape[d] for d in over)
    less = 1 if correction is None else correction
    return variance if not less else variance.like(variance.tensor * (count / (count - less)), nonnegative=True)


def _windows(x: Value, kernel: WindowSizes, stride: WindowSizes, padding: WindowSizes, ceil: bool) -> list[Window]:
    kernels = _pair(kernel, x)
    strides = _pair(stride, x) if stride not in ((), []) else kernels
    return [
        Window.of(size, k, s, p, p, ceil=ceil)
        for size, k, s, p in zip(x.shape[2:], kernels, strides, _pair(padding, x), strict=True)
    ]


def _counts(window: Window, padding: int, count_padding: bool) -> np.ndarray:
    """How many elements PyTorch divides the sum of each window by."""
    starts = np.arange(window.count) * window.stride - window.before
    stops = np.minimum(starts + window.kernel, window.size + padding)
    if count_padding:
        return stops - starts
    return np.minimum(stops, window.size) - np.maximum(starts, 0)


def _pooled(x: Value, made: tf.Tensor, windows: Sequence[Window]) -> Value:
    shape = (*x.shape[:2], *(window.count for window in windows))
    axes = tuple(
        axis if d in (None, 0, 1) else Axis() if shape[d] == 1 else Axis((d,))
        for d, axis in zip(_order(x), x.axes, strict=True)
    )
    return Value(made, shape, axes, x.nonnegative)


def _order(x: Value) -> tuple[int | None, ...]:
    return SEQUENCE if x.rank == 3 else IMAGE


def _pair(value: Any, x: Value) -> list[Any]:
    values = [value] if isinstance(value, int) else list(value)
    return values * (x.rank - 2) if len(values) == 1 else values


POOLING_OPS: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("max_pool1d", "max_pool2d"), max_pool),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d"), avg_pool),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d"), adaptive_avg_pool),
    **dict.fromkeys(("adaptive_max_pool1d", "adaptive_max_pool2d"), adaptive_max_pool),
    **dict.fromkeys(("mean", "mean.dim"), mean),
    **dict.fromkeys(("sum", "sum.dim_IntList"), total),
    **dict.fromkeys(("amax", "max"), amax),
    **dict.fromkeys(("amin", "min"), amin),
    **dict.fromkeys(("all", "all.dim", "all.dims"), every),
    **dict.fromkeys(("any", "any.dim", "any.dims"), some),
    "prod": lambda x, **kinds: product(x.reshaped((math.prod(x.shape),)), 0, **kinds),
    "prod.dim_int": product,
    "logsumexp": log_sum_exp,
    "argmax": argmax,
    "argmin": argmin,
    "max.dim": max_along,
    "min.dim": min_along,
    "var.correction": var,
}
