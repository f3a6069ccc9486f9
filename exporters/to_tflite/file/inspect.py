"""What a ``.tflite`` file computes, operator by operator."""

from math import prod
from pathlib import Path

from nbcompile.core.errors import CheckpointError
from nbcompile.exporters.base import FileLayer
from nbcompile.exporters.to_tflite.file.flatbuffer import File, FileOp, read_file
from nbcompile.exporters.to_tflite.file.ports import is_channels_last

_WEIGHING = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")


def tflite_content(path: Path) -> bytes:
    """The bytes of a file that can be read.

    Raises:
        CheckpointError: if it cannot.
    """
    try:
        content = path.read_bytes()
        read_file(content)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return content


def tflite_layers(path: Path) -> tuple[FileLayer, ...]:
    """The operators of a file, in the order of execution; a kind says what the result is stored in: ``CONV_2D int8``.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    file = read_file(tflite_content(path))
    return tuple(_layer(path, file, op) for op in file.ops if op.outputs)


def tflite_input_sizes(path: Path) -> tuple[tuple[int, ...], ...]:
    """Shapes of the inputs in PyTorch's layout, if they are stored as our files store them.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    file = read_file(tflite_content(path))
    stored = [file.tensors[i].shape for i in file.inputs]
    return tuple((s[0], s[-1], *s[1:-1]) if is_channels_last(len(s)) else s for s in stored)


def tflite_weights(file: File) -> int:
    """Elements of the weights of convolutions and linear layers, those of a shared buffer once; biases are none."""
    held = [file.tensors[op.inputs[1]].data for op in file.ops if op.name in _WEIGHING]
    places = {x.__array_interface__["data"][0]: x.size for x in held if x is not None and x.size}
    return sum(places.values())


def tflite_scheme(file: File) -> str:
    """How a file stores its numbers: one of `nbcompile.exporters.to_tflite.file.options.SCHEMES`."""
    made = {file.tensors[i].dtype.name for i in file.writers if file.tensors[i].quantization is not None}
    constants = {t.dtype.name for t in file.tensors if t.data is not None and (t.quantization or t.dtype.kind == "f")}
    if made & {"int16", "int8", "uint8"}:
        return "int16x8" if "int16" in made else "int8"
    return "float16" if "float16" in constants else "dynamic" if "int8" in constants else "float32"


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
