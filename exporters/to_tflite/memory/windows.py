"""Which rows of its inputs an operator reads for some rows of its output."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from nbcompile.exporters.to_tflite.file.parts import File, FileOp

_WINDOWED = {"CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D", "AVERAGE_POOL_2D"}
BY_ELEMENT = {
    *("ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "RELU", "RELU6", "RELU_N1_TO_1", "LEAKY_RELU"),
    *("PRELU", "HARD_SWISH", "LOGISTIC", "TANH", "ELU", "ABS", "QUANTIZE", "GELU"),
}
"""An element of the output depends on the elements at its place."""


@dataclass(frozen=True)
class RowWindow:
    """How one operator reads one of its inputs, a map ``(1, H, W, C)``.

    Attributes:
        tensor: number of the input.
        rows: of it that one row of the output depends on.
        stride: rows of it from one row of the output to the next.
        pads: zero rows above and below, zero columns to the left and right.
    """

    tensor: int
    rows: int = 1
    stride: int = 1
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)

    def begin(self, low: int) -> int:
        """The first row that output rows from ``low`` on need; less than 0 in the padding."""
        return low * self.stride - self.pads[0]

    def end(self, high: int) -> int:
        """One more than the last row that output rows before ``high`` need."""
        return (high - 1) * self.stride - self.pads[0] + self.rows


@dataclass(frozen=True)
class RowStage:
    """An operator that can be computed in strips of rows.

    Attributes:
        op: number of it.
        windows: its inputs that are maps.
        out: number of its output.
        pad: number of the PAD that is part of it.
    """

    op: int
    windows: tuple[RowWindow, ...]
    out: int
    pad: int | None = None


_Pads = Mapping[int, tuple[FileOp, Sequence[int]]]


def stages(file: File) -> dict[int, RowStage]:
    """Operators of ``file`` that can be computed in strips, by their numbers.

    A PAD that one convolution reads is part of that: its own stage has no windows, and that of the convolution says so.
    """
    readers: dict[int, list[FileOp]] = {}
    for op in file.ops:
        for number in set(op.inputs):
            readers.setdefault(number, []).append(op)
    pads = {op.outputs[0]: (op, around) for op in file.ops if (around := _pad(file, op)) is not None}
    alone = {out: pad for out, pad in pads.items() if len(readers.get(out, ())) == 1 and out not in file.outputs}
    found = {op.index: stage for op in file.ops if (stage := _stage(file, op, alone)) is not None}
    for stage in list(found.values()):
        if stage.pad is not None:
            found[stage.pad] = RowStage(stage.pad, (), file.ops[stage.pad].outputs[0])
    return found


def _pad(file: File, op: FileOp) -> tuple[int, int, int, int] | None:
    """Rows and columns that a PAD adds; None if it is none, or adds others."""
    if op.name != "PAD" or not is_map(file, op.inputs[0]) or file.tensors[op.inputs[1]].data is None:
        return None
    data: Any = file.tensors[op.inputs[1]].data
    (none, more), (top, bottom), (left, right), (first, last) = data.tolist()
    return None if none or more or first or last else (top, bottom, left, right)


def _stage(file: File, op: FileOp, pads: _Pads) -> RowStage | None:
    if len(op.outputs) != 1 or not is_map(file, op.outputs[0]):
        return None
    maps = [i for i in op.inputs if i >= 0 and file.tensors[i].data is None]
    if op.name in BY_ELEMENT:
        shape = file.tensors[op.outputs[0]].shape
        fixed = [file.tensors[i].shape for i in op.inputs if i >= 0 and file.tensors[i].data is not None]
        if any(file.tensors[i].shape != shape for i in maps) or any(prod(x[:-1]) > 1 for x in fixed):
            return None
        return RowStage(op.index, tuple(RowWindow(i) for i in dict.fromkeys(maps)), op.outputs[0])
    if op.name not in _WINDOWED or len(maps) != 1 or not is_map(file, maps[0]):
        return None
    return _windowed(file, op, pads)


def _windowed(file: File, op: FileOp, pads: _Pads) -> RowStage | None:
    options, source = op.options, op.inputs[0]
    if op.name.endswith("CONV_2D"):
        kernel = file.tensors[op.inputs[1]].shape[1:3]
        sides = [
            (k - 1) * d + 1 for k, d in zip(kernel, (options.dilationHFactor, options.dilationWFactor), strict=True)
        ]
    else:
        sides = [options.filterHeight, options.filterWidth]
    strides = options.strideH, options.strideW
    around: Sequence[int] = (0, 0, 0, 0)
    if options.padding == schema.Padding.SAME:
        sizes = zip(
            file.tensors[source].shape[1:3], file.tensors[op.outputs[0]].shape[1:3], sides, strides, strict=True
        )
        totals = [max((out - 1) * stride + side - size, 0) for size, out, side, stride in sizes]
        around = [part for total in totals for part in (total // 2, total - total // 2)]
    if any(around) and "POOL" in op.name:  # zeros are not what pooling leaves out
        return None
    pad = None
    if source in pads and "POOL" not in op.name and not any(around):
        padded, around = pads[source]
        source, pad = padded.inputs[0], padded.index
    a, b, c, d = around
    return RowStage(op.index, (RowWindow(source, sides[0], strides[0], (a, b, c, d)),), op.outputs[0], pad)


def is_map(file: File, number: int) -> bool:
    """Whether a tensor is one image's map ``(1, H, W, C)`` that is computed."""
    tensor = file.tensors[number]
    return tensor.data is None and len(tensor.shape) == 4 and tensor.shape[0] == 1
