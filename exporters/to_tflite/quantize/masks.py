"""Masks of attention, in a scale that leaves something for the rest.

A mask adds 0 to scores, or a number so low that softmax makes 0 of them: -1e4, -1e9, what a dtype has. Integers share
one scale per tensor, and kernels add two tensors only where their scales are not too far apart: LiteRT ends the
process. Softmax does not see how low a number is. So what is added to scores is lifted to where they all are still
nothing: a constant, an input, or either times a constant (``(1 - mask) * -1e9``).
"""

from dataclasses import replace
from typing import Any

import numpy as np

from nbcompile.exporters.to_tflite.file.edit import add_buffer, add_tensor
from nbcompile.exporters.to_tflite.file.flatbuffer import File, FileOp, pack, read_file, unpack
from nbcompile.exporters.to_tflite.file.pairs import KEEPING
from nbcompile.exporters.to_tflite.file.ports import FloatModel
from nbcompile.exporters.to_tflite.quantize.ranges import FADED, Range, Ranges, scores_of

_FARTHEST = 2.0**18
"""How many times wider than a sum its terms may be: at 2**19 LiteRT's kernel ends the process."""

_Constants = dict[tuple[int, int], np.ndarray]
"""What operators are to read, by the operator's number and the place among its inputs."""


def with_lifted_masks(model: FloatModel, ranges: Ranges) -> tuple[FloatModel, Ranges]:
    """``model`` and ``ranges``, masks no lower than it takes."""
    file, kept, lifted = read_file(model.content), dict(ranges.kept), _Constants()
    scores = scores_of(file)
    for op in file.ops:
        if op.name != "ADD" or op.outputs[0] not in scores:
            continue
        for place, other in enumerate(reversed(op.inputs)):
            low, high = _span(file, kept, other)
            _lift(file, kept, lifted, op, place, low - high - FADED)
        widest = max(kept[i][1] - kept[i][0] for i in op.inputs if i in kept)
        low, high = kept[op.outputs[0]]
        kept[op.outputs[0]] = min(low, high - widest / _FARTHEST), high
    return _with_constants(model, lifted), replace(ranges, kept=kept)


def _span(file: File, kept: dict[int, Range], index: int) -> Range:
    values = file.tensors[index].data
    return kept[index] if values is None else (float(values.min()), float(values.max()))


def _lift(file: File, kept: dict[int, Range], lifted: _Constants, op: FileOp, place: int, lowest: float) -> None:
    """Lift what ``op`` reads at ``place`` to ``lowest``, if nothing else reads it, nor what it is made of."""
    mask = op.inputs[place]
    if _span(file, kept, mask)[0] >= lowest:
        return
    if (values := file.tensors[mask].data) is not None:
        lifted[op.index, place] = np.maximum(values, np.float32(lowest))
        return
    if mask in file.outputs or any(mask in other.inputs for other in file.ops if other is not op):
        return
    writer = file.writers.get(mask)
    if writer is not None and writer.name == "MUL":
        factors = [file.tensors[i].data for i in writer.inputs]
        factor = next((i for i, values in enumerate(factors) if values is not None), None)
        if factor is None:
            return
        values, largest = np.asarray(factors[factor]), kept[writer.inputs[1 - factor]][1]
        lifted[writer.index, factor] = np.maximum(values, np.float32(lowest / max(largest, 1e-6)))
    elif writer is not None:
        if writer.name not in KEEPING:
            return
        _lift(file, kept, lifted, writer, 0, lowest)
        if kept[writer.inputs[0]][0] < lowest:
            return
    kept[mask] = max(kept[mask][0], lowest), kept[mask][1]


def _with_constants(model: FloatModel, constants: _Constants) -> FloatModel:
    """``model`` with a constant of its own for each place of an operator: others may read the old one."""
    if not constants:
        return model
    edited: Any = unpack(model.content)
    graph = edited.subgraphs[0]
    for (number, place), values in constants.items():
        inputs = list(graph.operators[number].inputs)
        name = graph.tensors[inputs[place]].name.decode()
        inputs[place] = add_tensor(edited, inputs[place], f"{name}/lifted {number}")
        graph.tensors[inputs[place]].buffer = add_buffer(edited, values)
        graph.operators[number].inputs = inputs
    return replace(model, content=pack(edited))
