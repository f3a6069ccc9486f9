"""Read a ``.tflite`` file in memory: its tensors, operators, scales and bytes; and write an edited one back.

Reads and writes with the schema's own code in ai-edge-litert; TensorFlow is not imported.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nbcompile.core.errors import CheckpointError

FILE_IDENTIFIER = b"TFL3"

BUFFER_ALIGNMENT = 16
"""Bytes, of every constant in a file: what the schema asks for, and what kernels on microcontrollers rely on."""

_DTYPES = {
    **{schema.TensorType.FLOAT32: "float32", schema.TensorType.FLOAT16: "float16", schema.TensorType.INT8: "int8"},
    **{schema.TensorType.INT16: "int16", schema.TensorType.INT32: "int32", schema.TensorType.INT64: "int64"},
    **{schema.TensorType.UINT8: "uint8", schema.TensorType.BOOL: "bool"},
}
_OPERATORS = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}


@dataclass(frozen=True, eq=False)
class Quantization:
    """The line between integers and numbers: ``x = scale * (q - zero_point)``.

    Attributes:
        scale: float32, one value, or one per channel.
        zero_point: int64, as many.
        axis: of the channels, where there is more than one.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int

    def integers(self, x: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
        """Numbers ``x`` as integers: rounded half away from zero, clipped to what ``dtype`` holds."""
        steps = x.astype(np.float64) / self._along(self.scale, x.ndim)
        rounded = np.copysign(np.floor(np.abs(steps) + 0.5), steps) + self._along(self.zero_point, x.ndim)
        clipped: np.ndarray = np.clip(rounded, np.iinfo(dtype).min, np.iinfo(dtype).max)
        return clipped.astype(dtype)

    def numbers(self, q: np.ndarray) -> np.ndarray:
        """What integers ``q`` stand for, float64."""
        x: np.ndarray = (q.astype(np.float64) - self._along(self.zero_point, q.ndim)) * self._along(self.scale, q.ndim)
        return x

    def _along(self, values: np.ndarray, ndim: int) -> np.ndarray:
        """``values`` in a shape that broadcasts over a tensor of ``ndim`` dimensions, which may be none."""
        axis = self.axis if len(values) > 1 else None
        return values.reshape([-1 if i == axis else 1 for i in range(ndim)])


@dataclass(frozen=True, eq=False)
class FileTensor:
    """One tensor of a file.

    Attributes:
        index: in the file.
        name: in the file.
        shape: in the file.
        dtype: of its values as they are stored.
        quantization: None for numbers that are stored as they are.
        data: its values if it is a constant, in ``shape``; else None.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    quantization: Quantization | None
    data: np.ndarray | None

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def quantized(self, x: np.ndarray) -> np.ndarray:
        """Numbers ``x`` as this tensor stores them."""
        return x.astype(self.dtype) if self.quantization is None else self.quantization.integers(x, self.dtype)

    def dequantized(self, q: np.ndarray) -> np.ndarray:
        """The numbers that stored values ``q`` stand for: float64; where nothing is quantized, ``q`` itself."""
        return q if self.quantization is None else self.quantization.numbers(q)


@dataclass(frozen=True)
class FileOp:
    """One operator of a file.

    Attributes:
        index: its place in the order of execution.
        name: as in the schema, such as ``CONV_2D``.
        version: of the operator.
        inputs: indices of tensors; -1 stands for an input that is not there.
        outputs: indices of tensors.
        options: the schema's own object (``Conv2DOptionsT``, say); None if it has none.
    """

    index: int
    name: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any


@dataclass(frozen=True)
class File:
    """What is in a ``.tflite`` file of one graph.

    Attributes:
        size: bytes of the file, which is what it takes in flash.
        tensors: all of them, by index.
        ops: in the order of execution.
        inputs: indices of tensors.
        outputs: indices of tensors.
    """

    size: int
    tensors: tuple[FileTensor, ...]
    ops: tuple[FileOp, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def operands(self, op: FileOp) -> Iterator[FileTensor]:
        """The inputs of ``op`` that are there."""
        return (self.tensors[i] for i in op.inputs if i >= 0)

    def step(self, index: int) -> float | None:
        """What one integer step of a tensor stands for, before a ``DEQUANTIZE``, too; None if it is not quantized."""
        tensor, writer = self.tensors[index], self.writers.get(index)
        if writer is not None and writer.name == "DEQUANTIZE":
            tensor = self.tensors[writer.inputs[0]]
        return None if tensor.quantization is None else float(tensor.quantization.scale.max())

    @cached_property
    def writers(self) -> dict[int, FileOp]:
        """The operator that computes a tensor, by the tensor's index; inputs and constants have none."""
        return {i: op for op in self.ops for i in op.outputs}


def read_file(content: bytes) -> File:
    """What is in a file.

    Raises:
        CheckpointError: if it is no ``.tflite`` file, is not complete, has control flow, or a dtype that nbcompile
            does not write.
    """
    model = unpack(content)
    if len(model.subgraphs) != 1:
        raise CheckpointError(
            f"the .tflite file has {len(model.subgraphs)} graphs (control flow); only one can be read"
        )
    graph = model.subgraphs[0]
    ops = tuple(_op(i, op, model.operatorCodes[op.opcodeIndex]) for i, op in enumerate(_list(graph.operators)))
    tensors = tuple(_tensor(i, tensor, model.buffers) for i, tensor in enumerate(graph.tensors))
    return File(len(content), tensors, ops, _numbers(graph.inputs), _numbers(graph.outputs))


def unpack(content: bytes) -> Any:
    """The file as the schema's own objects (a ``ModelT``), to edit and `pack` again.

    Raises:
        CheckpointError: if it is no ``.tflite`` file, or not complete.
    """
    if content[4:8] != FILE_IDENTIFIER:
        raise CheckpointError("this is no .tflite file: bytes 4 to 7 are not 'TFL3'")
    try:
        return schema.ModelT.InitFromPackedBuf(content, 0)
    except (struct.error, IndexError, ValueError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError("this .tflite file is damaged or not complete") from error


def pack(model: Any) -> bytes:
    """The bytes of an edited ``ModelT``, constants aligned to ``ALIGNMENT`` bytes."""
    builder = _AlignedBuilder()
    builder.Finish(model.Pack(builder), file_identifier=FILE_IDENTIFIER)
    return bytes(builder.Output())


class _AlignedBuilder(flatbuffers.Builder):  # type: ignore[misc]
    """The schema asks for 16-byte alignment of constants; its Python code packs them without."""

    def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802
        self.Prep(BUFFER_ALIGNMENT, x.nbytes)
        return int(super().CreateNumpyVector(x))


def _op(index: int, op: Any, code: Any) -> FileOp:
    # Files carry small codes in the old byte; 127 there says that the new field has the code.
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    name = code.customCode.decode() if code.customCode else _OPERATORS[number]
    options = op.builtinOptions2 if op.builtinOptions is None else op.builtinOptions
    return FileOp(index, name, code.version, _numbers(op.inputs), _numbers(op.outputs), options)


def _tensor(index: int, tensor: Any, buffers: list[Any]) -> FileTensor:
    name, shape = tensor.name.decode(), _numbers(tensor.shape)
    if tensor.type not in _DTYPES:
        raise CheckpointError(f"tensor '{name}' has type {tensor.type} of the schema, which nbcompile does not write")
    dtype = np.dtype(_DTYPES[tensor.type])
    stored = bytes(_list(buffers[tensor.buffer].data))
    known = stored or 0 in shape  # an empty constant, such as the shape of a scalar, is not stored
    data = np.frombuffer(stored, dtype).reshape(shape) if known else None
    return FileTensor(index, name, shape, dtype, _quantization(tensor.quantization), data)


def _quantization(stored: Any) -> Quantization | None:
    if stored is None or stored.scale is None or not len(stored.scale):
        return None
    scale, zero = (np.asarray(v) for v in (stored.scale, stored.zeroPoint))
    return Quantization(scale, zero, stored.quantizedDimension)


def _list(values: Any) -> Any:
    return [] if values is None else values


def _numbers(values: Any) -> tuple[int, ...]:
    return tuple(int(x) for x in _list(values))
