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
    return tuple(_layer(file, op) for op in file.ops)


def _layer(file: File, op: FileOp) -> FileLayer:
    result = file.tensors[op.outputs[0]]
    constants = [file.tensors[i] for i in op.inputs if i >= 0 and file.tensors[i].data is not None]
    weights = [t for t in constants if t.dtype.kind == "f" or t.quantization is not None]
    return FileLayer(result.name, f"{op.name} {result.dtype}", _macs(file, op), sum(prod(t.shape) for t in weights))


def _macs(file: File, op: FileOp) -> int:
    """By the shapes, as the formats of TFLite's operators have them."""
    result = prod(file.tensors[op.outputs[0]].shape)
    if op.name in ("CONV_2D", "FULLY_CONNECTED"):  # weight: outputs first
        return result * prod(file.tensors[op.inputs[1]].shape[1:])
    if op.name == "DEPTHWISE_CONV_2D":  # weight: (1, height, width, channels)
        return result * prod(file.tensors[op.inputs[1]].shape[1:3])
    if (
        op.name == "TRANSPOSE_CONV"
    ):  # every value of the input meets every tap; weight: (outputs, height, width, inputs)
        weight = file.tensors[op.inputs[1]].shape
        return prod(file.tensors[op.inputs[2]].shape) * prod(weight[:3])
    if op.name == "BATCH_MATMUL":
        transposed = bool(getattr(op.options, "adjX", False))
        return result * file.tensors[op.inputs[0]].shape[-2 if transposed else -1]
    return 0
