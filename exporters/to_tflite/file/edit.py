"""What is added to an unpacked file (`flatbuffer.unpack`): constants, tensors, operators."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nbcompile.exporters.to_tflite.file.flatbuffer import pack, read_file, unpack

_WORTH_IT = 256
"""Bytes."""


def add_buffer(model: Any, values: np.ndarray) -> int:
    """The number of a new buffer with ``values``."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def operator_code(model: Any, name: str, version: int = 1) -> int:
    """The number of the row of the file's operator table for ``name`` at ``version``, added if there is none."""
    builtin = getattr(schema.BuiltinOperator, name)
    for number, row in enumerate(model.operatorCodes):
        if row.builtinCode == builtin and row.version >= version:
            return number
    row = schema.OperatorCodeT()
    row.builtinCode = row.deprecatedBuiltinCode = builtin  # both: interpreters of before 2020 read the old field
    row.version = version
    model.operatorCodes.append(row)
    return len(model.operatorCodes) - 1


def add_tensor(model: Any, like: int, name: str, shape: Sequence[int] | None = None) -> int:
    """The index of a new tensor that has the type of another, its shape or ``shape``; an operator is to compute it."""
    tensors = model.subgraphs[0].tensors
    tensor = copy.copy(tensors[like])
    tensor.name, tensor.buffer = name.encode(), 0
    if shape is not None:
        tensor.shape, tensor.shapeSignature = np.array(shape, np.int32), None
    tensors.append(tensor)
    return len(tensors) - 1


def add_number(model: Any, value: float, name: str) -> int:
    """The index of a new constant: one float32."""
    tensor = schema.TensorT(shape=np.array([], np.int32), type=schema.TensorType.FLOAT32, name=name.encode())
    tensor.buffer = add_buffer(model, np.array(value, np.float32))
    model.subgraphs[0].tensors.append(tensor)
    return len(model.subgraphs[0].tensors) - 1


def new_operator(model: Any, name: str, inputs: list[int], output: int) -> Any:
    """An operator of the schema's version 1, to put in its place among the others."""
    op = schema.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = operator_code(model, name), inputs, [output]
    return op


def drop_unused_codes(model: Any) -> None:
    """Leave out rows of the operator table that no operator uses: interpreters look for their kernels, too."""
    used = sorted({op.opcodeIndex for op in model.subgraphs[0].operators})
    model.operatorCodes = [model.operatorCodes[number] for number in used]
    for op in model.subgraphs[0].operators:
        op.opcodeIndex = used.index(op.opcodeIndex)


def stored_once(content: bytes) -> bytes:
    """The file with one buffer for all constants of equal bytes: what a layer that is called several times reads.

    Where that saves next to nothing it stays as it is: constants are aligned, which takes some bytes.
    """
    constants = [tensor.data for tensor in read_file(content).tensors if tensor.data is not None and tensor.data.size]
    held = {x.__array_interface__["data"][0]: x.tobytes() for x in constants}
    if sum(map(len, held.values())) - sum(map(len, {*held.values()})) < _WORTH_IT:
        return content
    model = unpack(content)
    first: dict[bytes, int] = {}
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data):
            tensor.buffer = first.setdefault(bytes(data), tensor.buffer)
    used = {0, *(tensor.buffer for tensor in model.subgraphs[0].tensors), *(one.buffer for one in model.metadata or ())}
    for number, buffer in enumerate(model.buffers):
        if number not in used:
            buffer.data = None
    return min(pack(model), content, key=len)
