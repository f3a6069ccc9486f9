"""Which values of a file's outputs are judged together.

Integers share one scale per tensor. Where a network puts boxes of 640 pixels and scores of 0 to 1 into one output, the
scale that fits the boxes makes every score 0, and a signal over noise of both together does not show it. So an output
is judged part by part: what was joined into it (``torch.cat``) each by itself, and of that the channels in groups of
like size.
"""

from dataclasses import dataclass

import numpy as np

from nbcompile.core.judging.channel_groups import alike, channels_named
from nbcompile.exporters.to_tflite.file.flatbuffer import FileOp
from nbcompile.exporters.to_tflite.file.pairs import FIXED
from nbcompile.exporters.to_tflite.file.ports import FloatModel
from nbcompile.exporters.to_tflite.once import once
from nbcompile.exporters.to_tflite.run.one_operator import OperatorByOperator

_MOVING = (
    *("RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS", "CONCATENATION", "PACK", "SLICE", "STRIDED_SLICE"),
    *("SPLIT", "SPLIT_V", "UNPACK", "GATHER", "REVERSE_V2", "TILE"),
)
"""Operators that only move values."""


@dataclass(frozen=True, eq=False)
class Sources:
    """Where the values of one output were computed.

    Attributes:
        output: the layer that gives the output.
        layers: those that compute its values.
        numbers: in the output's shape: which of ``layers``.
        whole: for each of ``layers``, whether TFLite prescribes its scale (softmax): its channels are one group.
    """

    output: str
    layers: tuple[str, ...]
    numbers: np.ndarray
    whole: tuple[bool, ...]


@dataclass(frozen=True, eq=False)
class OutputPart:
    """Values of one output that are judged together.

    Attributes:
        name: in words; empty where they are all of the output.
        output: the layer that gives the output; empty where it is not known.
        where: in the output's shape: which values.
    """

    name: str
    output: str
    where: np.ndarray


@once
def sources_of(model: FloatModel) -> list[Sources]:
    """Where the values of each output were computed; found by moving numbers of layers as the file moves values."""
    parts = OperatorByOperator(model.content)
    file, found = parts.file, []
    for index in file.outputs:
        layers: dict[str, int] = {}
        natural: list[bool] = []
        numbers = _numbers(parts, index, layers, natural)
        names = tuple(model.layers.get(name, name) for name in layers)
        name = file.tensors[index].name
        found.append(Sources(model.layers.get(name, name), names, numbers.astype(int), tuple(natural)))
    return found


def _numbers(parts: OperatorByOperator, index: int, layers: dict[str, int], natural: list[bool]) -> np.ndarray:
    file = parts.file
    tensor, op = file.tensors[index], file.writers.get(index)
    if op is None or op.name not in _MOVING or tensor.dtype != np.float32 or {*parts.inputs(op)} - {*_moved(parts, op)}:
        if tensor.name not in layers:
            natural.append(op is not None and op.name in FIXED)
        return np.full(tensor.shape, layers.setdefault(tensor.name, len(layers)), np.float32)
    given = {i: _numbers(parts, i, layers, natural) for i in _moved(parts, op)}
    constants = {i: x for i, x in given.items() if file.tensors[i].data is not None}
    results = parts.start(op, "builtin", constants).run(given)
    return results[op.outputs.index(index)]


def _moved(parts: OperatorByOperator, op: FileOp) -> list[int]:
    """The inputs of ``op`` that it moves; the others say where to."""
    return list(dict.fromkeys(t.index for t in parts.file.operands(op) if t.dtype == np.float32))


def output_parts(y: np.ndarray, sources: Sources | None = None) -> list[OutputPart]:
    """The parts of an output.

    Args:
        y: the output, sample by sample: ``(N, *shape)``.
        sources: where it was computed; None: in one place.
    """
    shape = y.shape[1:]
    if sources is None:
        sources = Sources("", ("",), np.zeros(shape, int), (False,))
    parts = []
    for number, (layer, whole) in enumerate(zip(sources.layers, sources.whole, strict=True)):
        where = sources.numbers == number
        if not where.any() and where.size:  # nothing of it was taken
            continue
        name = "" if where.all() else f"'{layer}'"
        for group, channels in [("", where)] if whole else _groups(y, where):
            both = f"{group} of {name}" if group and name else group or name
            parts.append(OutputPart(both, sources.output, channels))
    return parts


def _groups(y: np.ndarray, where: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The values at ``where``, by groups of channels."""
    axes = (1, 2) if where.ndim == 3 else range(max(where.ndim - 1, 0), where.ndim)
    for axis in axes:  # sequences have channels first or last
        if len(groups := alike(*(x.tolist() for x in _span(y, where, axis)))) > 1:
            shape = [-1 if i == axis else 1 for i in range(where.ndim)]
            masks = [np.isin(np.arange(where.shape[axis]), group).reshape(shape) & where for group in groups]
            return [(channels_named(group), mask) for group, mask in zip(groups, masks, strict=True)]
    return [("", where)]


def _span(y: np.ndarray, where: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest value of each channel along ``axis``; infinity below minus infinity where it has none."""
    low, high = np.where(where, y, np.inf), np.where(where, y, -np.inf)
    others = tuple(i for i in range(y.ndim) if i != axis + 1)
    return low.min(others), high.max(others)
