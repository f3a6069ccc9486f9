"""Operators of a float file and of the quantized one made from it: which are the same, and what scales suit them."""

from dataclasses import dataclass

import numpy as np

from nbcompile.exporters.to_tflite.file.flatbuffer import File, FileOp, FileTensor

_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")

FIXED = ("SOFTMAX", "LOG_SOFTMAX", "LOGISTIC", "TANH", "L2_NORMALIZATION")
"""Operators whose result has a scale that TFLite prescribes."""

KEEPING = (
    *("PAD", "PADV2", "MIRROR_PAD", "RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS", "SLICE", "STRIDED_SLICE"),
    *("SPLIT", "SPLIT_V", "UNPACK", "GATHER", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "BROADCAST_TO", "TILE"),
    *("MAX_POOL_2D", "AVERAGE_POOL_2D", "REDUCE_MAX", "REDUCE_MIN", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"),
    *("REVERSE_V2", "TOPK_V2", "GATHER_ND", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND"),
)
"""Operators whose result keeps the scale of their input."""

JOINING = ("CONCATENATION", "PACK", "MAXIMUM", "MINIMUM", "SELECT", "SELECT_V2")
"""Operators whose inputs and result share one scale."""


@dataclass(frozen=True)
class SameOperator:
    """An operator of the float file, and the same one of the quantized file."""

    exact: FileOp
    quantized: FileOp

    @property
    def operands(self) -> list[tuple[int, int]]:
        """Indices of the tensors that both read, place by place."""
        both = zip(self.exact.inputs, self.quantized.inputs, strict=False)  # quantizing may add a bias
        return [(i, j) for i, j in both if i >= 0 and j >= 0]


def same_operators(exact: File, quantized: File) -> list[SameOperator]:
    """The operators that both files have, in the order of the quantized one.

    They follow each other in the same order, with conversions between them; where that is not so, they are found by
    the names of their results.
    """
    left, right = ([op for op in file.ops if op.name not in _CONVERSIONS] for file in (exact, quantized))
    if [op.name for op in left] == [op.name for op in right]:
        return [SameOperator(a, b) for a, b in zip(left, right, strict=True)]
    by_name = {exact.tensors[op.outputs[0]].name: op for op in left}
    named = [(by_name.get(quantized.tensors[op.outputs[0]].name), op) for op in right]
    return [SameOperator(a, b) for a, b in named if a is not None and a.name == b.name]


def prescribed(file: File, op: FileOp) -> bool:
    """Whether the scale of an operator's result is not its own: TFLite prescribes it, or neighbours share it."""
    return op.name in (*FIXED, *KEEPING, *JOINING) or _joined(file, op)


def _joined(file: File, op: FileOp) -> bool:
    """Whether the result of ``op`` is joined with something else, as it is or passed on."""
    readers = [other for other in file.ops if op.outputs[0] in other.inputs]
    return any(r.name in JOINING or (r.name in KEEPING and _joined(file, r)) for r in readers)


def needed_step(low: float, high: float, tensor: FileTensor) -> float:
    """The finest step with which ``tensor`` could hold numbers from ``low`` to ``high``, and zero."""
    levels = np.iinfo(tensor.dtype)
    return (max(high, 0.0) - min(low, 0.0)) / (int(levels.max) - int(levels.min))


def rounded(constant: FileTensor, stored: FileTensor) -> np.ndarray | None:
    """The numbers of a float constant, rounded as well as the integers of ``stored``, its quantized form, allow.

    With a scale per channel where ``stored`` has one; on both sides of zero alike where its zero point is 0. Biases,
    32 bits wide, are not rounded.
    """
    values, form = constant.data, stored.quantization
    if values is None or form is None or stored.dtype.itemsize > 2:
        return values
    axes = tuple(i for i in range(values.ndim) if len(form.scale) == 1 or i != form.axis)
    top = int(np.iinfo(stored.dtype).max)
    low, high = values.min(axes, keepdims=True, initial=0.0), values.max(axes, keepdims=True, initial=0.0)
    step = (high - low) / (2 * top + 1) if form.zero_point.any() else np.maximum(high, -low) / top
    step = np.where(step > 0, step, 1.0)
    return (np.round(values / step) * step).astype(values.dtype)
