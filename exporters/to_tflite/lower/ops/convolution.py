"""Convolutions: of any stride, padding, dilation and groups, in one and two dimensions, transposed or not."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf
from nbcompile.exporters.to_tflite.lower.layout import Axis, axis_of
from nbcompile.exporters.to_tflite.lower.refusal import LoweringError
from nbcompile.exporters.to_tflite.lower.value import Value, stored_array
from nbcompile.exporters.to_tflite.lower.windows import PerAxis, Window, padded, scheme

SEQUENCE = (0, None, 2, 1)
"""Maps of one dimension are images of one row."""

IMAGE = (0, 2, 3, 1)
"""Channels last."""


def conv(
    x: Value,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    """One CONV_2D or DEPTHWISE_CONV_2D; a PAD before it only where neither SAME nor VALID is PyTorch's padding."""
    _require(x, weight)
    stride, dilation = _per_dim(stride, x), _per_dim(dilation, x)
    pads = _pads(padding, weight, dilation)
    x, windows, name = _with_windows(x, weight, stride, pads, dilation)
    depthwise = groups == x.shape[1] and groups > 1
    x = x.arranged(SEQUENCE if x.rank == 3 else IMAGE, free=(1,) if depthwise or groups == 1 else ())
    channels = x.axes[-1].places(x.shape)
    kernel = _kernel(weight)
    strides, dilations = _rows(stride), _rows(dilation)
    out: Sequence[int] | None = None
    if depthwise:
        kernel = kernel.reshape(*kernel.shape[:2], groups, -1)[:, :, channels]
        multiplier = kernel.shape[-1]
        out = [int(c) * multiplier + m for c in channels for m in range(multiplier)]
        made = tf.raw_ops.DepthwiseConv2dNative(
            input=x.tensor,
            filter=kernel,
            strides=[1, *strides, 1],
            padding=name,
            dilations=[1, *dilations, 1],
        )
    else:
        kernel = kernel[:, :, channels] if groups == 1 else kernel
        made = tf.nn.conv2d(x.tensor, kernel, strides, name, dilations=dilations)
    return _result(x, made, bias, [window.count for window in windows], out)


def conv_transpose(
    x: Value,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    """One TRANSPOSE_CONV, and a slice where PyTorch crops otherwise than SAME.

    TFLite has neither groups nor dilation here: the kernel gets zeros instead.
    """
    _require(x, weight)
    stride, dilation = _per_dim(stride, x), _per_dim(dilation, x)
    crops, more = _per_dim(padding, x), _per_dim(output_padding, x)
    kernel = _dilated(_kernel(_dense(weight, groups)), _rows(dilation))
    sizes = [
        (n - 1) * s - 2 * p + d * (k - 1) + 1 + extra
        for n, s, p, d, k, extra in zip(x.shape[2:], stride, crops, dilation, weight.shape[2:], more, strict=True)
    ]
    # A transposed convolution is the way back of the convolution whose windows lie on its output.
    windows = [
        Window.of(size, d * (k - 1) + 1, s, p, p)
        for size, s, p, d, k in zip(sizes, stride, crops, dilation, weight.shape[2:], strict=True)
    ]
    same = scheme(windows) == "SAME" and [window.count for window in windows] == list(x.shape[2:])
    full = [
        max((n - 1) * s + d * (k - 1) + 1, p + size)
        for n, s, p, d, k, size in zip(x.shape[2:], stride, crops, dilation, weight.shape[2:], sizes, strict=True)
    ]
    x = x.arranged(SEQUENCE if x.rank == 3 else IMAGE, free=(1,))
    kernel = kernel[:, :, :, x.axes[-1].places(x.shape)]
    target = [x.shape[0], *_rows(sizes if same else full), kernel.shape[2]]
    made = tf.nn.conv2d_transpose(x.tensor, kernel, target, _rows(stride), "SAME" if same else "VALID")
    if not same and full != sizes:
        begins = _rows(crops, 0)
        made = tf.slice(made, [0, *begins, 0], [x.shape[0], *_rows(sizes), kernel.shape[2]])
    return _result(x, made, bias, sizes)


def _with_windows(
    x: Value, weight: Tensor, stride: Sequence[int], pads: Sequence[PerAxis], dilation: Sequence[int]
) -> tuple[Value, list[Window], str]:
    """What the kernel is laid on, where, and TensorFlow's name for it."""

    def windows(source: Value, pads: Sequence[PerAxis]) -> list[Window]:
        return [
            Window.of(size, k, s, *pad, d)
            for size, k, s, pad, d in zip(source.shape[2:], weight.shape[2:], stride, pads, dilation, strict=True)
        ]

    if x.padded is not None:  # zeros that the network itself pads with may be those of SAME
        source, zeros = x.padded
        both = [(a + c, b + d) for (a, b), (c, d) in zip(zeros[2:], pads, strict=True)]
        sides = windows(source, both)
        if zeros[:2] == ((0, 0), (0, 0)) and min(min(pad) for pad in both) >= 0:
            if name := scheme(sides):
                return source, sides, name
            x, pads = source, both
    sides = windows(x, pads)
    if name := scheme(sides):
        return x, sides, name
    return padded(x, [(0, 0), (0, 0), *((w.before, w.after) for w in sides)]), sides, "VALID"


def _result(
    x: Value, made: tf.Tensor, bias: Tensor | None, sizes: Sequence[int], out: Sequence[int] | None = None
) -> Value:
    """The value whose channels are ``made``'s, in the order ``out``."""
    channels = made.shape[-1]
    if bias is not None:
        values = stored_array(bias)
        made = tf.nn.bias_add(made, values if out is None else values[list(out)])
    ordered = out is None or list(out) == list(range(channels))
    shape = (x.shape[0], channels, *sizes)
    last = Axis() if channels == 1 else Axis((1,), None if ordered or out is None else tuple(out))
    spatial = tuple(Axis() if n == 1 else Axis((d,)) for d, n in enumerate(sizes, 2))
    return Value(made, shape, (axis_of(0, shape), *(Axis(),) * (2 - len(spatial)), *spatial, last))


def _pads(padding: Any, weight: Tensor, dilation: Sequence[int]) -> list[PerAxis]:
    if padding == "valid":
        return [(0, 0)] * (weight.ndim - 2)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    values = [padding] if isinstance(padding, int) else list(padding)
    return [(p, p) for p in (values * (weight.ndim - 2) if len(values) == 1 else values)]


def _per_dim(value: Any, x: Value) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * (x.rank - 2) if len(values) == 1 else values


def _rows(values: Sequence[int], first: int = 1) -> list[int]:
    """``values`` for two dimensions: a map of one dimension is one row."""
    return [first, *values] if len(values) == 1 else list(values)


def _kernel(weight: Tensor) -> np.ndarray:
    """``(out, in, *kernel)`` as TensorFlow has it: ``(rows, columns, in, out)``."""
    return stored_array((weight.unsqueeze(2) if weight.ndim == 3 else weight).permute(2, 3, 1, 0))


def _dense(weight: Tensor, groups: int) -> Tensor:
    """The kernel ``(in, out, ...)`` of a transposed convolution without groups: zeros between them."""
    if groups == 1:
        return weight
    wide, narrow = weight.shape[0] // groups, weight.shape[1]
    dense = weight.new_zeros(weight.shape[0], narrow * groups, *weight.shape[2:])
    for g in range(groups):
        rows = slice(g * wide, (g + 1) * wide)
        dense[rows, g * narrow : (g + 1) * narrow] = weight[rows]
    return dense


def _dilated(kernel: np.ndarray, dilation: Sequence[int]) -> np.ndarray:
    rows, columns = ((n - 1) * d + 1 for n, d in zip(kernel.shape, dilation, strict=False))
    wide = np.zeros((rows, columns, *kernel.shape[2:]), kernel.dtype)
    wide[:: dilation[0], :: dilation[1]] = kernel
    return wide


def _require(x: Value, weight: Any) -> None:
    if isinstance(weight, Value):
        raise LoweringError("its kernel is computed from the input", "make the weights constants of the network")
    if x.rank != weight.ndim:
        raise LoweringError(f"its input {x.shape} has no batch dimension", "give it one (unsqueeze(0))")


CONVOLUTION_OPS: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv1d.padding", "conv2d.padding"), conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d.input"), conv_transpose),
}
