"""Products of matrices, attention, softmax and norms."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf
from nbcompile.exporters.to_tflite.lower.layout import Axis
from nbcompile.exporters.to_tflite.lower.ops.elementwise import MASKED, add_scaled, mul
from nbcompile.exporters.to_tflite.lower.ops.pooling import mean
from nbcompile.exporters.to_tflite.lower.refusal import LoweringError
from nbcompile.exporters.to_tflite.lower.value import Value, elementwise, stored_array


def linear(x: Value, weight: Tensor | Value, bias: Tensor | None = None) -> Value:
    """One FULLY_CONNECTED; its columns in the order in which ``x`` is stored."""
    if isinstance(weight, Value):
        raise LoweringError("its weight is computed from the input", "use torch.matmul")
    if x.rank == 1:
        return linear(x.with_dim(0), weight, bias).without({0})
    last = x.rank - 1
    x = x.arranged((*(d for d in x.order if d != last), last), free=(last,))
    columns = stored_array(weight)[:, x.axes[-1].places(x.shape)]
    made = tf.matmul(x.tensor, columns.T) if x.rank == 2 else tf.linalg.matmul(x.tensor, columns.T)
    if bias is not None:
        made = tf.nn.bias_add(made, stored_array(bias))
    width = len(columns)
    shape = (*x.shape[:-1], width)
    return Value(made, shape, (*x.axes[:-1], Axis() if width == 1 else Axis((last,))))


def matmul(a: Value | Tensor, b: Value | Tensor) -> Value:
    """One FULLY_CONNECTED with a constant matrix on the right, else one BATCH_MATMUL."""
    if isinstance(a, Value) and isinstance(b, Tensor) and b.ndim == 2 and a.rank >= 2:
        return linear(a, b.T)
    if len(a.shape) < 2:
        rows = matmul(_reshaped(a, (1, *a.shape)), b)
        return rows.reshaped((*rows.shape[:-2], *rows.shape[-1:]) if len(b.shape) > 1 else ())
    if len(b.shape) < 2:
        columns = matmul(a, _reshaped(b, (*b.shape, 1)))
        return columns.reshaped(columns.shape[:-1])
    rank = max(len(a.shape), len(b.shape))
    (left, turn_left), (right, turn_right) = _matrices(a, rank), _matrices(b, rank)
    return Value.of(tf.matmul(left, right, transpose_a=turn_left, transpose_b=turn_right))


def _matrices(x: Value | Tensor, rank: int) -> tuple[Any, bool]:
    """``x`` as matrices, and whether they are stored transposed."""
    if isinstance(x, Tensor):
        return stored_array(x.reshape((1,) * (rank - x.ndim) + x.shape)), False
    x = x.widened(rank)
    rows, columns = rank - 2, rank - 1
    turned = x.order.index(rows) > x.order.index(columns) and 1 not in (x.shape[rows], x.shape[columns])
    return x.arranged([*range(rank - 2), *((columns, rows) if turned else (rows, columns))]).tensor, turned


def _reshaped(x: Value | Tensor, shape: Sequence[int]) -> Value | Tensor:
    return x.reshaped(shape) if isinstance(x, Value) else x.reshape(*shape)


def addmm(bias: Tensor, x: Value, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> Value:
    """``beta * bias + alpha * x @ weight``."""
    product = matmul(x, weight)
    return add_scaled(product if alpha == 1 else mul(product, alpha), bias if beta == 1 else mul(bias, beta))


def attention(
    query: Value,
    key: Value,
    value: Value,
    mask: Tensor | Value | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """``softmax(query @ key.T * scale + mask) @ value``; the scale goes to the query, the smaller factor."""
    if enable_gqa:
        raise LoweringError("heads share keys (enable_gqa)", "repeat the keys and values of the shared heads")
    scores = matmul(mul(query, query.shape[-1] ** -0.5 if scale is None else scale), key.permuted(_turned(key.rank)))
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if isinstance(mask, Tensor):
        mask = (~mask).float() * -MASKED if mask.dtype == torch.bool else mask.clamp(min=-MASKED)
    if mask is not None:
        scores = add_scaled(scores, mask)
    return matmul(softmax(scores, -1), value)


def _turned(rank: int) -> list[int]:
    return [*range(rank - 2), rank - 1, rank - 2]


def softmax(x: Value, dim: int, *_: Any) -> Value:
    """One SOFTMAX."""
    x = _last(x, dim)
    return x.like(tf.nn.softmax(x.tensor), nonnegative=True)


def log_softmax(x: Value, dim: int, *_: Any) -> Value:
    """One LOG_SOFTMAX."""
    x = _last(x, dim)
    return x.like(tf.nn.log_softmax(x.tensor))


def _last(x: Value, dim: int) -> Value:
    dim %= x.rank
    if not x.axes or x.axes[-1].dims != (dim,):
        x = x.arranged((*(d for d in x.order if d != dim), dim), free=range(x.rank))
    return x


def layer_norm(
    x: Value, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Value:
    """Over the last dimensions; TFLite has no operator for it."""
    return _affine(_normalised(x, range(x.rank - len(shape), x.rank), eps), weight, bias)


def rms_norm(x: Value, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Value:
    """Over the last dimensions, without their mean."""
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    over = range(x.rank - len(shape), x.rank)
    x = x.parted(over)
    power = mean(x.like(tf.square(x.tensor), nonnegative=True), over, keepdim=True)
    return _affine(mul(x, power.like(tf.math.rsqrt(power.tensor + eps))), weight, None)


def group_norm(
    x: Value, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Value:
    """Over the channels of each group and all places."""
    parts = x.reshaped((x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]))
    normalised = _normalised(parts, range(2, parts.rank), eps).reshaped(x.shape)
    return _affine(normalised, *(None if c is None else _per_channel(c, x.rank) for c in (weight, bias)))


def instance_norm(
    x: Value,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Value:
    """Over all places of each channel."""
    if not use_input_stats and running_mean is not None and running_var is not None:
        return batch_norm(x, weight, bias, running_mean, running_var, momentum, eps)
    normalised = _normalised(x, range(2, x.rank), eps)
    return _affine(normalised, *(None if c is None else _per_channel(c, x.rank) for c in (weight, bias)))


def batch_norm(
    x: Value, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, momentum: float, eps: float
) -> Value:
    """A product and a sum per channel; most norms are part of the layer before them already."""
    scale = torch.rsqrt(var.double() + eps) * (1 if weight is None else weight.double())
    shift = -mean.double() * scale + (0 if bias is None else bias.double())
    return _affine(x, _per_channel(scale.float(), x.rank), _per_channel(shift.float(), x.rank))


def _normalised(x: Value, over: Sequence[int], eps: float) -> Value:
    """With mean 0 and variance 1 over dimensions ``over``."""
    x = x.parted(over)
    centre = mean(x, over, keepdim=True)
    centred = elementwise(tf.subtract, x, centre)
    power = mean(centred.like(tf.square(centred.tensor), nonnegative=True), over, keepdim=True)
    return elementwise(tf.multiply, centred, power.like(tf.math.rsqrt(power.tensor + eps)))


def _affine(x: Value, weight: Tensor | None, bias: Tensor | None) -> Value:
    x = x if weight is None else mul(x, weight)
    return x if bias is None else add_scaled(x, bias)


def _per_channel(values: Tensor, rank: int) -> Tensor:
    return values.reshape(-1, *(1,) * (rank - 2))


def bicubic(x: Value, size: Sequence[int] | None, align_corners: bool, factors: Sequence[float] | None = None) -> Value:
    """Two FULLY_CONNECTED, along rows and along columns: TFLite has no operator for it."""
    for dim in (3, 2):
        old, last = x.shape[dim], x.rank - 1
        picture = torch.eye(old).view((old, 1, 1, old) if dim == 3 else (old, 1, old, 1))
        sizes = None if size is None else [size[i] if i == dim - 2 else 1 for i in (0, 1)]
        scales = None if factors is None else [factors[i] if i == dim - 2 else 1.0 for i in (0, 1)]
        weight = torch.ops.aten.upsample_bicubic2d.vec(picture, sizes, align_corners, scales).reshape(old, -1).T
        x = linear(x.permuted(_swapped(dim, last)), weight).permuted(_swapped(dim, last))
    return x


def _swapped(a: int, b: int) -> list[int]:
    return [{a: b, b: a}.get(d, d) for d in range(max(a, b) + 1)]


MATRIX_OPS: Mapping[str, Callable[..., Any]] = {
    "linear": linear,
    **dict.fromkeys(("matmul", "bmm", "mm"), matmul),
    "addmm": addmm,
    "scaled_dot_product_attention": attention,
    "softmax.int": softmax,
    "log_softmax.int": log_softmax,
    "upsample_bicubic2d.vec": bicubic,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "_native_batch_norm_legit_no_training": lambda *args: [batch_norm(*args)],
}
