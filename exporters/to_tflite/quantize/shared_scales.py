"""Values that TFLite wants in one scale, and ranges that suit all who read them.

The result of a ``clamp`` has the scale of what it clamps, and a concatenation that of its parts. TensorFlow's quantizer
takes the result's range for both. Where nothing else reads the operand, that is as well as can be: what is clipped
counts for nothing. Where something does, it would read a clipped value, or a coarse one. So there

=============================  ======================================================================================
a result that is narrower      gets the range of its operand, and loses little by that
a result that is much          gets a copy of its operand in its own scale, clipped: in the operand's its limits would
narrower                       be rounded to steps of that, alike in every element, which shows in means; of what is
                               joined, any that is wider than all of it, for the sake of the others
a result that is wider         gets a copy of its operand in its own scale, if the operand would become too coarse
=============================  ======================================================================================
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nbcompile.exporters.to_tflite.file.edit import add_number, add_tensor, new_operator
from nbcompile.exporters.to_tflite.file.flatbuffer import File, FileOp, pack, read_file, unpack
from nbcompile.exporters.to_tflite.file.pairs import JOINING, KEEPING
from nbcompile.exporters.to_tflite.file.ports import FloatModel
from nbcompile.exporters.to_tflite.quantize.ranges import Range, Ranges

COARSER = 2.0
"""How many times wider a range may become for the sake of a result before a copy is made: one bit."""

NARROWER = 4.0
"""How many times wider than a result its operand may be before a copy is made: its limits are off by 2 of 255 steps."""

WIDER_PART = 1.5
"""How many times wider than all that is joined one of the parts may be before a copy is made: half a bit of the rest.
A maximum of signed values has the scale of what it was taken of, and would give it to a mean beside it."""

_FILLING = "PADV2"
"""The one operator that keeps the scale of its input and brings a value of its own."""

_CLIPS = ("MAXIMUM", "MINIMUM")

_UNCLIPPED = ("AVERAGE_POOL_2D", "RESIZE_BILINEAR", "REVERSE_V2")
"""What is clipped behind them must not be clipped before: means would change, and REVERSE_V2 is not rescaled."""

_ONE = float(np.nextafter(np.float32(1), np.float32(2)))
"""A copy is a product with this: TensorFlow leaves out a factor of 1."""


def with_shared_scales(model: FloatModel, ranges: Ranges) -> tuple[FloatModel, Ranges]:
    """``ranges`` that no operator changes for those who read its operands, and ``model`` with the copies this takes."""
    file, kept = read_file(model.content), dict(ranges.kept)
    held = {i for i in kept if sum(i in op.inputs for op in file.ops) + (i in file.outputs) > 1}
    held |= {i for op in file.ops if op.name in _UNCLIPPED for i in _passed(file, op)}
    copies: list[tuple[FileOp, int]] = []
    for op in file.ops:
        if op.name not in (*KEEPING, *JOINING):
            continue
        operands = dict.fromkeys(i for i in op.inputs if i in held and file.tensors[i].data is None)
        results = [i for i in op.outputs if i in kept]
        if op.name in KEEPING and op.name != _FILLING:
            kept |= {i: kept[operand] for operand in operands for i in results}
        elif results:
            (result,) = results
            inner = kept[_clipped(file, op)]
            spared = NARROWER if op.name in _CLIPS else WIDER_PART
            apart = [i for i in operands if _width(kept[i]) > spared * _width(inner)]
            if apart:
                kept[result] = inner
            wide = _hull([kept[result], *(kept[i] for i in operands if i not in apart)])
            apart += [i for i in operands if _width(wide) > COARSER * _width(kept[i])]
            copies += [(op, i) for i in apart]
            operands = {i: None for i in operands if i not in apart}
            kept[result] = _hull([kept[result], *(kept[i] for i in operands)])
        if operands:
            held |= {*results}
    return with_copies(model, file, copies), replace(ranges, kept=_with_range_of_copies(file, kept, copies))


def _passed(file: File, op: FileOp) -> list[int]:
    """What ``op`` reads, and what that was before operators that keep its scale: all have one scale."""
    before: FileOp | None = op
    chain: list[int] = []
    while before is not None and before.name in KEEPING and before.name != _FILLING:
        chain.append(before.inputs[before.name == "SPLIT"])
        before = file.writers.get(chain[-1])
    return chain


def _clipped(file: File, op: FileOp) -> int:
    """The result of ``op``; where nothing but a clip reads that, the result of the last clip behind it."""
    result = op.outputs[0]
    readers = [other for other in file.ops if result in other.inputs]
    alone = len(readers) == 1 and readers[0].name in _CLIPS and result not in file.outputs
    return _clipped(file, readers[0]) if alone else result


def _hull(ranges: list[Range]) -> Range:
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _width(limits: Range) -> float:
    return limits[1] - limits[0]


def name_of_copy(source: str, result: str) -> str:
    """What the copy of a tensor is called that is made for the operator which computes ``result``."""
    return f"{source}/for {result}"


def copies_in(file: File) -> dict[int, tuple[int, int]]:
    """The copies in ``file``: what each of them is of, and the result of the operator that reads it."""
    found = {}
    for op in file.ops:
        for i in op.inputs:
            made = file.writers.get(i)
            named = (file.tensors[j].name for j in (i, made.inputs[0], op.outputs[0])) if made is not None else ()
            match list(named):
                case [copy, source, result] if made is not None and copy == name_of_copy(source, result):
                    found[i] = made.inputs[0], op.outputs[0]
    return found


def with_copies(model: FloatModel, file: File, copies: Sequence[tuple[FileOp, int]]) -> FloatModel:
    """``model``, in which some operators read a copy of a tensor, with a scale of its own, in its place."""
    if not copies:
        return model
    edited = unpack(model.content)
    graph, before = edited.subgraphs[0], dict[int, list[object]]()
    name = {tensor.index: tensor.name for tensor in file.tensors}
    names = [name_of_copy(name[i], name[op.outputs[0]]) for op, i in copies]
    taken = [add_tensor(edited, i, copy) for (_, i), copy in zip(copies, names, strict=True)]
    one = add_number(edited, _ONE, "one")
    for (op, operand), copy in zip(copies, taken, strict=True):
        made = new_operator(edited, "MUL", [operand, one], copy)
        made.builtinOptionsType, made.builtinOptions = schema.BuiltinOptions.MulOptions, schema.MulOptionsT()
        before.setdefault(op.index, []).append(made)
        graph.operators[op.index].inputs = [copy if i == operand else i for i in graph.operators[op.index].inputs]
    graph.operators = [x for i, op in enumerate(graph.operators) for x in (*before.get(i, ()), op)]
    layers = {copy: model.layers.get(name[i], name[i]) for (_, i), copy in zip(copies, names, strict=True)}
    return replace(model, content=pack(edited), layers={**model.layers, **layers})


def _with_range_of_copies(file: File, kept: dict[int, Range], copies: list[tuple[FileOp, int]]) -> dict[int, Range]:
    """Copies are the first tensors behind those of the file; the factor behind them has no range."""
    return kept | {len(file.tensors) + n: kept[op.outputs[0]] for n, (op, _) in enumerate(copies)}
