"""What a ``.tflite`` file computes, operator by operator."""

from math import prod
from pathlib import Path

from nbcompile.core.errors import CheckpointError
from nbcompile.exporters.base import FileLayer
from nbcompile.exporters.to_tflite.file.flatbuffer import File, FileOp, read_file


def tflite_layers(path: Path) -> tuple[FileLayer, ...]:
    """The operators of a file, in the order of execution; a kind says what the result is stored in: ``CONV_2D int8``.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    try:
        file = read_file(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return tuple(_layer(path, file, op) for op in file.ops if op.outputs)


def _layer(path: Path, file: File, op: FileOp) -> FileLayer:
    result = file.tensors[op.outputs[0]]
    constants = [tensor for tensor in file.operands(op) if tensor.data is not None]
    weights = [t for t in constants if t.dtype.kind == "f" or t.quantization is not None]
    operands = [file.tensors[i].shape if i >= 0 else () for i in op.inputs]
    try:
        macs = _macs(op, operands, prod(result.shape))
    except IndexError as error:
        raise CheckpointError(
            f"{path} cannot be read: operator {op.index} ({op.name}) of tensors {operands} cannot be run: it is damaged"
        ) from error
    return FileLayer(result.name, f"{op.name} {result.dtype}", macs, sum(prod(t.shape) for t in weights))


def _macs(op: FileOp, operands: list[tuple[int, ...]], result: int) -> int:
    """By the shapes of the operands and the elements of the result, as TFLite's operators have them.

    Raises:
        IndexError: if an operand is not there, or lacks a dimension.
    """
    if op.name in ("CONV_2D", "FULLY_CONNECTED"):  # weight: outputs first
        return result * prod(operands[1][1:])
    if op.name == "DEPTHWISE_CONV_2D":  # weight: (1, height, width, channels)
        return result * prod(operands[1][1:3])
    if (
        op.name == "TRANSPOSE_CONV"
    ):  # every value of the input meets every tap; weight: (outputs, height, width, inputs)
        return prod(operands[2]) * prod(operands[1][:3])
    if op.name == "BATCH_MATMUL":
        transposed = bool(getattr(op.options, "adjX", False))
        return result * operands[0][-2 if transposed else -1]
    return 0
