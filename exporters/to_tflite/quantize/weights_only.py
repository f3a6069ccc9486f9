"""The schemes that change weights only: float16, and int8 weights under float activations ("dynamic range").

Both are edits of the float file that leave its layers as they are; no calibration set is needed.
"""

import copy
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nbcompile.exporters.to_tflite.file.edit import add_buffer, operator_code
from nbcompile.exporters.to_tflite.file.flatbuffer import File, FileOp, FileTensor, pack, read_file, unpack


@dataclass(frozen=True)
class _Hybrid:
    """An operator with kernels for int8 weights and float activations.

    Attributes:
        axis: of the weights, that has the output channels.
        version: of the operator, that has those kernels.
    """

    axis: int
    version: int


_HYBRIDS = {
    "CONV_2D": _Hybrid(axis=0, version=5),
    "DEPTHWISE_CONV_2D": _Hybrid(axis=3, version=6),
    "FULLY_CONNECTED": _Hybrid(axis=0, version=12),
}
_DEQUANTIZE_OF_FLOAT16 = 3  # version

LEAST_VALUES = 1024
"""Weights of fewer values stay float in ``dynamic``: there is no size to gain, and rounding costs accuracy."""

_LARGEST = 127  # int8, symmetric


def to_float16(content: bytes, except_for: Collection[str] = ()) -> bytes:
    """The file with its constants in float16; interpreters make them float32 again when they load it.

    A constant with a value beyond float16's range (65,504), and a single number, stay float32.

    Args:
        content: the float file.
        except_for: names of tensors; the operators that compute those keep their constants.
    """
    file, model = read_file(content), unpack(content)
    graph = model.subgraphs[0]
    added = []
    for tensor, values, readers in _constants(file):
        if values.size == 1 or np.abs(values).max() > np.finfo(np.float16).max or _any_of(readers, file, except_for):
            continue
        stored = copy.copy(graph.tensors[tensor.index])
        stored.name, stored.type = f"{tensor.name}.float16".encode(), schema.TensorType.FLOAT16
        stored.buffer = add_buffer(model, values.astype(np.float16))
        graph.tensors[tensor.index].buffer = 0  # of the schema: no data; it is computed now
        graph.tensors.append(stored)
        op = schema.OperatorT()
        op.opcodeIndex = operator_code(model, "DEQUANTIZE", _DEQUANTIZE_OF_FLOAT16)
        op.inputs, op.outputs = [len(graph.tensors) - 1], [tensor.index]
        added.append(op)
    graph.operators = [*added, *graph.operators]
    return _packed(model)


def to_dynamic(
    content: bytes,
    except_for: Collection[str] = (),
    *,
    per_channel: bool = True,
    dense_per_channel: bool = True,
) -> bytes:
    """The file with the weights of convolutions and linear layers in int8, symmetric.

    Kernels quantize the activations as they come, and give float32 again.

    Args:
        content: the float file.
        except_for: names of tensors; the operators that compute those keep their weights.
        per_channel: whether there is a scale per output channel; else one per layer.
        dense_per_channel: the same of linear layers alone.
    """
    file, model = read_file(content), unpack(content)
    graph = model.subgraphs[0]
    for tensor, values, readers in _constants(file):
        hybrid = _HYBRIDS.get(readers[0].name)
        alike = all(op.name == readers[0].name and op.inputs[1] == tensor.index for op in readers)
        if hybrid is None or not alike or values.size < LEAST_VALUES or _any_of(readers, file, except_for):
            continue
        whole = not per_channel or (readers[0].name == "FULLY_CONNECTED" and not dense_per_channel)
        others = tuple(axis for axis in range(values.ndim) if whole or axis != hybrid.axis)
        largest = np.abs(values).max(others, keepdims=True)
        scale = np.where(largest > 0, largest / _LARGEST, 1).astype(np.float32)
        edited = graph.tensors[tensor.index]
        edited.type, edited.buffer = schema.TensorType.INT8, add_buffer(model, np.round(values / scale).astype(np.int8))
        edited.quantization = schema.QuantizationParametersT()
        edited.quantization.scale = scale.ravel()
        edited.quantization.zeroPoint = np.zeros(scale.size, np.int64)
        edited.quantization.quantizedDimension = 0 if whole else hybrid.axis
        for op in readers:
            graph.operators[op.index].opcodeIndex = operator_code(model, op.name, hybrid.version)
            if op.name == "FULLY_CONNECTED":
                # As TensorFlow's converter asks its kernel for.
                graph.operators[op.index].builtinOptions.asymmetricQuantizeInputs = True
    return _packed(model)


def _constants(file: File) -> list[tuple[FileTensor, np.ndarray, list[FileOp]]]:
    """The float constants, their values, and the operators that read them."""
    readers: dict[int, list[FileOp]] = {}
    for op in file.ops:
        for tensor in file.operands(op):
            readers.setdefault(tensor.index, []).append(op)
    read = [(file.tensors[i], ops) for i, ops in readers.items()]
    return [(t, t.data, ops) for t, ops in read if t.data is not None and t.dtype == np.float32]


def _any_of(ops: list[FileOp], file: File, tensors: Collection[str]) -> bool:
    return any(file.tensors[i].name in tensors for op in ops for i in op.outputs)


def _packed(model: Any) -> bytes:
    """The file, without the contents of buffers that nothing reads any more."""
    used = {tensor.buffer for tensor in model.subgraphs[0].tensors} | {m.buffer for m in model.metadata or []}
    for number, buffer in enumerate(model.buffers):
        if number not in used:
            buffer.data = None
    return pack(model)
