"""Operators that TensorFlow's quantizer to int16x8 refuses, in others that it takes: HARD_SWISH.

It is ``x * relu6(x + 3) / 6``, and 16 bits lose nothing by rounding in between.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from nbcompile.exporters.to_tflite.file.edit import add_number, add_tensor, drop_unused_codes, new_operator
from nbcompile.exporters.to_tflite.file.flatbuffer import File, FileOp, pack, read_file, unpack
from nbcompile.exporters.to_tflite.file.ports import FloatModel

_WHOLE = "HARD_SWISH"


def with_int16_forms(model: FloatModel) -> FloatModel:
    """``model`` with such operators replaced."""
    file = read_file(model.content)
    if not any(op.name == _WHOLE for op in file.ops):
        return model
    edited = unpack(model.content)
    graph = edited.subgraphs[0]
    pairs = zip(file.ops, graph.operators, strict=True)
    graph.operators = [new for op, old in pairs for new in (_parts(edited, file, op) if op.name == _WHOLE else [old])]
    drop_unused_codes(edited)
    return replace(model, content=pack(edited))


def _parts(edited: Any, file: File, op: FileOp) -> Iterator[Any]:
    (x,), (y,) = op.inputs, op.outputs
    name = file.tensors[y].name
    clipped, share = add_tensor(edited, y, f"{name}/clipped"), add_tensor(edited, y, f"{name}/share")
    add = new_operator(edited, "ADD", [x, add_number(edited, 3.0, f"{name}/3")], clipped)
    add.builtinOptionsType = schema.BuiltinOptions.AddOptions
    add.builtinOptions = schema.AddOptionsT(fusedActivationFunction=schema.ActivationFunctionType.RELU6)
    yield add
    yield _product(edited, clipped, add_number(edited, 1 / 6, f"{name}/6"), share)
    yield _product(edited, x, share, y)


def _product(edited: Any, x: int, factor: int, y: int) -> Any:
    op = new_operator(edited, "MUL", [x, factor], y)
    op.builtinOptionsType, op.builtinOptions = schema.BuiltinOptions.MulOptions, schema.MulOptionsT()
    return op
