"""Read a ``.tflite`` file in memory: its tensors, operators, scales and bytes; and write an edited one back.

Reads and writes with the schema's own code in ai-edge-litert; TensorFlow is not imported.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nbcompile.core.errors import CheckpointError
from nbcompile.exporters.to_tflite.file.parts import File, FileOp, FileTensor, Quantization

__all__ = ["BUFFER_ALIGNMENT", "File", "FileOp", "FileTensor", "Quantization", "pack", "read_file", "unpack"]

FILE_IDENTIFIER = b"TFL3"

BUFFER_ALIGNMENT = 16
"""Bytes, of every constant in a file: what the schema asks for, and what kernels on microcontrollers rely on."""

MEMORY_PLAN = "OfflineMemoryAllocation"
"""Metadata in which TFLite Micro finds a plan (tflite-micro's docs/offline_memory_plan.md); others pass it over."""

_MOST_DIMENSIONS = 32
"""Of a tensor: no kernel takes more than 8."""

_DTYPES = {
    **{schema.TensorType.FLOAT32: "float32", schema.TensorType.FLOAT16: "float16", schema.TensorType.INT8: "int8"},
    **{schema.TensorType.INT16: "int16", schema.TensorType.INT32: "int32", schema.TensorType.INT64: "int64"},
    **{schema.TensorType.UINT8: "uint8", schema.TensorType.BOOL: "bool"},
}
_OPERATORS = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}


def read_file(content: bytes) -> File:
    """What is in a file.

    Raises:
        CheckpointError: if it is no ``.tflite`` file, is not complete, has control flow, or a dtype that nbcompile
            does not write.
    """
    _require_identifier(content)
    with _damage_said():
        return _Reading(content).file()


def unpack(content: bytes) -> Any:
    """The file as the schema's own objects (a ``ModelT``), to edit and `pack` again.

    Raises:
        CheckpointError: if it is no ``.tflite`` file, or not complete.
    """
    _require_identifier(content)
    with _damage_said():
        return schema.ModelT.InitFromPackedBuf(content, 0)


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


class _Reading:
    """One pass over a file that may be damaged, or made to take long: what is read twice is paid for twice.

    Nothing in the format forbids that a million strings lie in the same kilobyte.
    """

    def __init__(self, content: bytes) -> None:
        self._size = len(content)
        self._left = 4 * len(content) + 2**16
        self._model = schema.Model.GetRootAs(content, 0)
        self._stored: dict[int, bytes] = {}

    def file(self) -> File:
        """What is in it."""
        model = self._model
        if model.SubgraphsLength() != 1:
            raise CheckpointError(
                f"the .tflite file has {model.SubgraphsLength()} graphs (control flow); only one can be read"
            )
        graph = model.Subgraphs(0)
        codes = [self._code(model.OperatorCodes(i)) for i in self._range(model.OperatorCodesLength())]
        tensors = tuple(self._tensor(i, graph.Tensors(i)) for i in self._range(graph.TensorsLength()))
        ops = tuple(self._op(i, graph.Operators(i), codes) for i in self._range(graph.OperatorsLength()))
        inputs, outputs = self._numbers(graph.InputsAsNumpy()), self._numbers(graph.OutputsAsNumpy())
        _require_there([*inputs, *outputs, *(i for op in ops for i in op.outputs)], tensors, least=0)
        _require_there([i for op in ops for i in op.inputs], tensors, least=-1)
        return File(self._size, tensors, ops, inputs, outputs, self._plan(len(tensors)))

    def _plan(self, count: int) -> tuple[int, ...]:
        """The offsets of ``count`` tensors, if the file has them."""
        for i in self._range(self._model.MetadataLength()):
            row = self._model.Metadata(i)
            if self._text(row.Name()) == MEMORY_PLAN:
                values = np.frombuffer(self._buffer(row.Buffer()), np.int32)
                if len(values) != 3 + count:
                    raise CheckpointError(f"this .tflite file is damaged: its memory plan is not of {count} tensors")
                return tuple(values[3:].tolist())
        return ()

    def _pay(self, count: int) -> int:
        """``count`` bytes more are read."""
        self._left -= count
        if self._left < 0:
            raise CheckpointError("this .tflite file is damaged: its parts lie in each other")
        return count

    def _range(self, count: int) -> range:
        return range(self._pay(4 * count) // 4)

    def _numbers(self, values: Any) -> tuple[int, ...]:
        """A vector of integers; flatbuffers gives 0 for one that is not there."""
        if isinstance(values, int):
            return ()
        self._pay(4 * len(values))
        return tuple(map(int, values))

    def _text(self, text: bytes | None) -> str:
        self._pay(len(text or b""))
        return (text or b"").decode()

    def _code(self, code: Any) -> tuple[str, int]:
        """Name and version of an operator."""
        # Files carry small codes in the old byte; 127 there says that the new field has the code.
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        name = self._text(code.CustomCode()) or _OPERATORS.get(number)
        if name is None:
            raise CheckpointError(f"this .tflite file is damaged, or newer: it has an operator of number {number}")
        return name, code.Version()

    def _op(self, index: int, op: Any, codes: list[tuple[str, int]]) -> FileOp:
        name, version = codes[op.OpcodeIndex()]
        options = schema.BuiltinOptionsCreator(op.BuiltinOptionsType(), op.BuiltinOptions())
        if options is None:
            options = schema.BuiltinOptions2Creator(op.BuiltinOptions2Type(), op.BuiltinOptions2())
        held = vars(options).values() if options is not None else ()
        self._pay(sum(len(value) for value in held if isinstance(value, (bytes, list))))
        return FileOp(
            index, name, version, self._numbers(op.InputsAsNumpy()), self._numbers(op.OutputsAsNumpy()), options
        )

    def _tensor(self, index: int, tensor: Any) -> FileTensor:
        name, shape = self._text(tensor.Name()), self._numbers(tensor.ShapeAsNumpy())
        if tensor.Type() not in _DTYPES:
            raise CheckpointError(
                f"tensor '{name}' has type {tensor.Type()} of the schema, which nbcompile does not write"
            )
        if min(shape, default=0) < 0 or len(shape) > _MOST_DIMENSIONS:
            raise CheckpointError(f"tensor '{name}' has {len(shape)} dimensions, the least {min(shape)}: it is damaged")
        dtype = np.dtype(_DTYPES[tensor.Type()])
        stored = self._buffer(tensor.Buffer())
        known = stored or 0 in shape  # an empty constant, such as the shape of a scalar, is not stored
        if known and len(stored) != prod(shape) * dtype.itemsize:
            raise CheckpointError(
                f"tensor '{name}' of {dtype} {shape} has {len(stored):,} bytes in the file: it is damaged"
            )
        data = np.frombuffer(stored, dtype).reshape(shape) if known else None
        return FileTensor(index, name, shape, dtype, self._quantization(tensor.Quantization(), name, shape), data)

    def _buffer(self, index: int) -> bytes:
        if index not in self._stored:
            if index >= self._model.BuffersLength():
                raise CheckpointError(f"this .tflite file is damaged: it lacks buffer {index}")
            values = self._model.Buffers(index).DataAsNumpy()
            self._pay(0 if isinstance(values, int) else len(values))
            self._stored[index] = b"" if isinstance(values, int) else values.tobytes()
        return self._stored[index]

    def _quantization(self, stored: Any, name: str, shape: tuple[int, ...]) -> Quantization | None:
        if stored is None or not stored.ScaleLength():
            return None
        count, axis = stored.ScaleLength(), stored.QuantizedDimension()
        self._pay(12 * count)
        scale = stored.ScaleAsNumpy()
        zero = stored.ZeroPointAsNumpy() if stored.ZeroPointLength() else np.zeros(count, np.int64)
        if len(zero) != count or (count > 1 and not (0 <= axis < len(shape) and shape[axis] == count)):
            raise CheckpointError(f"tensor '{name}' {shape} has {count} scales along axis {axis}: it is damaged")
        return Quantization(scale, zero, axis)


def _require_identifier(content: bytes) -> None:
    if content[4:8] != FILE_IDENTIFIER:
        raise CheckpointError("this is no .tflite file: bytes 4 to 7 are not 'TFL3'")


@contextmanager
def _damage_said() -> Iterator[None]:
    """What the schema's code makes of offsets that lead anywhere, as one sentence."""
    try:
        yield
    except (struct.error, LookupError, ValueError, TypeError, OverflowError, AttributeError) as error:
        raise CheckpointError("this .tflite file is damaged or not complete") from error


def _require_there(indices: list[int], tensors: tuple[FileTensor, ...], *, least: int) -> None:
    if wrong := [index for index in indices if not least <= index < len(tensors)]:
        raise CheckpointError(f"this .tflite file is damaged: of its {len(tensors)} tensors it reads number {wrong[0]}")
