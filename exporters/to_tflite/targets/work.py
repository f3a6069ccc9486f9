"""The work of each operator of an int8 file, as the kernels of CMSIS-NN and TFLite Micro do it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

from nbcompile.exporters.to_tflite.file.flatbuffer import File, FileOp

IN_CMSIS_NN = (
    *("pointwise", "strided pointwise", "convolution", "depthwise 3x3", "depthwise", "FULLY_CONNECTED", "ADD", "MUL"),
    *("MAXIMUM", "MINIMUM", "PAD", "PADV2", "AVERAGE_POOL_2D", "MAX_POOL_2D", "SOFTMAX", "TRANSPOSE", "TRANSPOSE_CONV"),
    *("BATCH_MATMUL", "SVDF", "UNIDIRECTIONAL_SEQUENCE_LSTM"),
)
"""Kinds whose int8 kernels in TFLite Micro are those of CMSIS-NN, where it is built with them: its folder
``kernels/cmsis_nn``. All others run as its reference kernels."""

MAC, OUTPUT, PLACE, GATHERED, WEIGHT, INPUT, PART, CALL = (
    *("mac", "output", "place", "gathered", "weight", "input", "part", "call"),
)
"""What the time of a kernel goes by: multiply-accumulates; values of the result; places of it, all channels at once;
values that are gathered as columns before a convolution; weights; values of the first input; inputs; once."""


@dataclass(frozen=True)
class Work:
    """One operator's work.

    Attributes:
        kind: of kernel: one of ``IN_CMSIS_NN``, or the operator's name; with its type where that is not int8.
        result: index of the tensor that it computes.
        counts: how often what its time goes by is done.
    """

    kind: str
    result: int
    counts: dict[str, int]

    @property
    def optimized(self) -> bool:
        """Whether CMSIS-NN has a kernel for it."""
        return self.kind in IN_CMSIS_NN


def works(file: File) -> Iterator[Work]:
    """The work of every operator, in order."""
    for op in file.ops:
        kind, counts = _COUNTED.get(op.name, _by_values)(file, op)
        before, after = (file.tensors[ends[0]].dtype.name for ends in (op.inputs, op.outputs))
        if after != "int8":
            kind = f"{kind} in {after}"
        elif op.name == "QUANTIZE" and before != after:
            kind = f"{kind} of {before}"
        yield Work(kind, op.outputs[0], {CALL: 1} | counts)


def _values(file: File, op: FileOp) -> tuple[int, int]:
    return prod(file.tensors[op.inputs[0]].shape), prod(file.tensors[op.outputs[0]].shape)


def _convolution(file: File, op: FileOp) -> tuple[str, dict[str, int]]:
    _, values = _values(file, op)
    channels, *window = file.tensors[op.inputs[1]].shape
    column, places = prod(window), values // channels
    counts = {MAC: values * column, OUTPUT: values, PLACE: places, WEIGHT: channels * column}
    if window[:2] == [1, 1]:
        return "pointwise" if (op.options.strideH, op.options.strideW) == (1, 1) else "strided pointwise", counts
    return "convolution", counts | {GATHERED: places * column}


def _depthwise(file: File, op: FileOp) -> tuple[str, dict[str, int]]:
    _, values = _values(file, op)
    _, height, width, channels = file.tensors[op.inputs[1]].shape
    kind = "depthwise 3x3" if (height, width) == (3, 3) else "depthwise"
    return kind, {MAC: values * height * width, OUTPUT: values, PLACE: values // channels}


def _transposed(file: File, op: FileOp) -> tuple[str, dict[str, int]]:
    _, values = _values(file, op)
    _, height, width, channels = file.tensors[op.inputs[1]].shape
    inputs = prod(file.tensors[op.inputs[2]].shape)
    macs = inputs * height * width * file.tensors[op.outputs[0]].shape[-1]
    return op.name, {MAC: macs, OUTPUT: values, PLACE: inputs // channels}


def _dense(file: File, op: FileOp) -> tuple[str, dict[str, int]]:
    _, values = _values(file, op)
    weights = prod(file.tensors[op.inputs[1]].shape)
    return op.name, {MAC: values * file.tensors[op.inputs[1]].shape[-1], OUTPUT: values, WEIGHT: weights}


def _pool(file: File, op: FileOp) -> tuple[str, dict[str, int]]:
    _, values = _values(file, op)
    return op.name, {MAC: values * op.options.filterHeight * op.options.filterWidth, OUTPUT: values}


def _by_values(file: File, op: FileOp) -> tuple[str, dict[str, int]]:
    inputs, values = _values(file, op)
    return op.name, {INPUT: inputs, OUTPUT: values, PART: len(op.inputs)}


_COUNTED: dict[str, Callable[[File, FileOp], tuple[str, dict[str, int]]]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transposed,
    "FULLY_CONNECTED": _dense,
    "AVERAGE_POOL_2D": _pool,
    "MAX_POOL_2D": _pool,
}
