"""Operators that TFLite Micro lacks, or computes otherwise than LiteRT, in a form that both compute alike.

=======================  ============================================================================================
RELU6 of its own         its kernel takes the input's scale for the result's, where LiteRT's rescales: integers that the
                         quantizer chose are wrong there by the ratio of the two. So a RELU, which rescales everywhere,
                         and a MINIMUM, whose operands and result have one scale
RELU_N1_TO_1 and others  it has no kernel for these: a MAXIMUM and a MINIMUM
SELECT                   the same as SELECT_V2, which it has
TILE                     a CONCATENATION of as many copies, dimension by dimension
long CONCATENATION       it takes 10 parts at most: a tree
=======================  ============================================================================================
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from nbcompile.exporters.to_tflite.file.edit import add_number, add_tensor, drop_unused_codes, new_operator
from nbcompile.exporters.to_tflite.file.flatbuffer import File, FileOp, pack, read_file, unpack
from nbcompile.exporters.to_tflite.file.ports import FloatModel
from nbcompile.exporters.to_tflite.targets.micro_operators import MOST_PARTS

_Part = tuple[int, tuple[int, ...]]

_CLIPS = {"RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0), "RELU_0_TO_1": (0.0, 1.0)}
"""Lowest and highest result of each."""


def with_micro_forms(model: FloatModel) -> FloatModel:
    """``model`` with such operators replaced."""
    file = read_file(model.content)
    if not any(op.name in (*_CLIPS, "SELECT", "TILE") or _is_long(op) for op in file.ops):
        return model
    edited = unpack(model.content)
    graph = edited.subgraphs[0]
    graph.operators = [
        new for op, old in zip(file.ops, graph.operators, strict=True) for new in _form(edited, file, op, old)
    ]
    drop_unused_codes(edited)
    return replace(model, content=pack(edited))


def _form(edited: Any, file: File, op: FileOp, old: Any) -> Iterator[Any]:
    if op.name == "SELECT":
        new = new_operator(edited, "SELECT_V2", [*op.inputs], op.outputs[0])
        new.builtinOptionsType, new.builtinOptions = schema.BuiltinOptions.SelectV2Options, schema.SelectV2OptionsT()
        yield new
    elif op.name in _CLIPS:
        yield from _clip(edited, file, op)
    elif op.name == "TILE":
        yield from _tiled(edited, file, op)
    elif _is_long(op):
        shapes = [file.tensors[i].shape for i in op.inputs]
        axis = op.options.axis % len(shapes[0])
        yield from _joined(edited, list(zip(op.inputs, shapes, strict=True)), axis, op.outputs[0])
    else:
        yield old


def _clip(edited: Any, file: File, op: FileOp) -> Iterator[Any]:
    (x,), (y,) = op.inputs, op.outputs
    name, (low, high) = file.tensors[y].name, _CLIPS[op.name]
    between = add_tensor(edited, y, f"{name}/lower")
    if low == 0:
        yield new_operator(edited, "RELU", [x], between)
    else:
        yield _limit(edited, "MAXIMUM", x, add_number(edited, low, f"{name}/low"), between)
    yield _limit(edited, "MINIMUM", between, add_number(edited, high, f"{name}/high"), y)


def _is_long(op: FileOp) -> bool:
    return op.name == "CONCATENATION" and len(op.inputs) > MOST_PARTS


def _tiled(edited: Any, file: File, op: FileOp) -> Iterator[Any]:
    x, (y,) = op.inputs[0], op.outputs
    shape, name = list(file.tensors[x].shape), file.tensors[y].name
    times = [new // old for new, old in zip(file.tensors[y].shape, shape, strict=True)]
    repeated = [axis for axis, n in enumerate(times) if n > 1]
    for axis in repeated:
        parts = [(x, tuple(shape))] * times[axis]
        shape[axis] *= times[axis]
        x = y if axis == repeated[-1] else add_tensor(edited, y, f"{name}/{axis}", shape)
        yield from _joined(edited, parts, axis, x)


def _joined(edited: Any, parts: list[_Part], axis: int, y: int) -> Iterator[Any]:
    """``parts``, tensors and their shapes, side by side in ``y``."""
    name = edited.subgraphs[0].tensors[y].name.decode()
    while len(parts) > MOST_PARTS:
        taken = [parts[i : i + MOST_PARTS] for i in range(0, len(parts), MOST_PARTS)]
        parts = []
        for group in taken:
            shape = list(group[0][1])
            shape[axis] = sum(one[axis] for _, one in group)
            joined = add_tensor(edited, y, f"{name}/part{len(edited.subgraphs[0].tensors)}", shape)
            yield _concatenation(edited, [i for i, _ in group], axis, joined)
            parts.append((joined, tuple(shape)))
    yield _concatenation(edited, [i for i, _ in parts], axis, y)


def _concatenation(edited: Any, parts: list[int], axis: int, y: int) -> Any:
    op = new_operator(edited, "CONCATENATION", parts, y)
    op.builtinOptionsType = schema.BuiltinOptions.ConcatenationOptions
    op.builtinOptions = schema.ConcatenationOptionsT(axis=axis)
    return op


def _limit(edited: Any, kind: str, x: int, limit: int, y: int) -> Any:
    op = new_operator(edited, kind, [x, limit], y)
    op.builtinOptionsType = schema.BuiltinOptions.MaximumMinimumOptions
    op.builtinOptions = schema.MaximumMinimumOptionsT()
    return op
