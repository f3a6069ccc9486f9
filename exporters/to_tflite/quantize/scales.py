"""What the quantizer made of a float file: which tensors share a scale, and which layers have integer weights.

Read from the quantized file itself, so that whoever simulates it (`nbcompile.training.int8`) need not know its rules.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nbcompile.exporters.to_tflite.file.flatbuffer import File, FileTensor
from nbcompile.exporters.to_tflite.file.pairs import FIXED, JOINING, KEEPING, SameOperator, same_operators

_LAYERS = {"CONV_2D": (0, 2), "DEPTHWISE_CONV_2D": (0, 2), "FULLY_CONNECTED": (0, 2), "TRANSPOSE_CONV": (2, 3)}
"""Operators whose second input are weights: which are what they read, and their bias."""

_AVERAGING = "AVERAGE_POOL_2D"
_ROUNDING = (_AVERAGING, "RESIZE_BILINEAR")
"""Operators that keep a scale, and compute with it."""


@dataclass(frozen=True)
class SharedScale:
    """Of one tensor, or of several that share it.

    Attributes:
        tensors: their indices in the float file, in the order of execution; inputs first.
        step: what 1 stands for.
        zero: the integer that stands for 0.
        prescribed: whether TFLite fixes it, as behind a softmax.
    """

    tensors: tuple[int, ...]
    step: float
    zero: int
    prescribed: bool


@dataclass(frozen=True)
class IntegerLayer:
    """An operator with weights in int8.

    Attributes:
        weight: index of its weights in the float file.
        source: index of what it reads.
        output: index of its result.
        bias: index of its bias in the quantized file; None where it has none.
        per_channel: whether the weights have a scale per output channel.
    """

    weight: int
    source: int
    output: int
    bias: int | None
    per_channel: bool


@dataclass(frozen=True)
class FileScales:
    """All of a file.

    Attributes:
        scales: of the tensors that are computed.
        layers: with weights in int8.
        moved: tensors that an operator only moves, or takes the largest of: they are rounded as what it read.
        averaged: means of a few integers, which often lie half-way between two.
        rescaled: tensors that the quantizer gives some reader in another scale, by itself.
    """

    scales: tuple[SharedScale, ...]
    layers: tuple[IntegerLayer, ...]
    moved: frozenset[int]
    averaged: frozenset[int]
    rescaled: frozenset[int]


def scales_of(exact: File, quantized: File) -> FileScales:
    """Compare a float file with the int8 file that was made from it."""
    forms: dict[int, tuple[float, int]] = {}
    rescaled: set[int] = set()
    groups: dict[int, int] = {}
    layers: list[IntegerLayer] = []
    fixed: set[int] = set()
    for pair in same_operators(exact, quantized):
        op, outputs = pair.exact, list(zip(pair.exact.outputs, pair.quantized.outputs, strict=True))
        for i, j in (*pair.operands, *outputs):
            form = _form(quantized.tensors[j])
            if exact.tensors[i].data is not None or form is None:
                continue
            if forms.setdefault(i, form) != form:
                rescaled.add(i)
            groups.setdefault(i, i)
        fixed |= {i for i in op.outputs if op.name in FIXED}
        if op.name in (*KEEPING, *JOINING):
            _join(groups, forms, [i for i, _ in (*pair.operands, *outputs) if i in groups])
        if (layer := _layer(exact, quantized, pair)) is not None:
            layers.append(layer)
    averaged = {i for op in exact.ops if op.name == _AVERAGING for i in op.outputs}
    moved = {i for op in exact.ops if op.name in KEEPING and op.name not in _ROUNDING for i in op.outputs}
    found = map(frozenset, (moved, averaged, rescaled))
    return FileScales(_scales(groups, forms, fixed), tuple(layers), *found)


def _form(tensor: FileTensor) -> tuple[float, int] | None:
    form = tensor.quantization
    if form is None or tensor.dtype != np.int8 or len(form.scale) != 1:
        return None
    return float(form.scale[0]), int(form.zero_point[0])


def _join(groups: dict[int, int], forms: Mapping[int, tuple[float, int]], members: list[int]) -> None:
    """Tensors of one operator that share a scale, and have it, become one group."""
    for i in members[1:]:
        first, other = groups[members[0]], groups[i]
        if forms[i] == forms[members[0]] and first != other:
            groups.update({k: first for k, group in groups.items() if group == other})


def _layer(exact: File, quantized: File, pair: SameOperator) -> IntegerLayer | None:
    """The layer, if the operator has constant weights that became int8."""
    op = pair.exact
    if op.name not in _LAYERS or exact.tensors[op.inputs[1]].data is None:
        return None
    source, place = _LAYERS[op.name]
    stored = quantized.tensors[dict(pair.operands)[op.inputs[1]]]
    if stored.dtype != np.int8 or stored.quantization is None:
        return None
    bias = dict(enumerate(pair.quantized.inputs)).get(place, -1)
    per_channel = len(stored.quantization.scale) > 1
    return IntegerLayer(op.inputs[1], op.inputs[source], op.outputs[0], bias if bias >= 0 else None, per_channel)


def _scales(
    groups: Mapping[int, int], forms: Mapping[int, tuple[float, int]], fixed: set[int]
) -> tuple[SharedScale, ...]:
    members: dict[int, list[int]] = {}
    for i, group in groups.items():
        members.setdefault(group, []).append(i)
    return tuple(SharedScale(tuple(found), *forms[found[0]], bool(fixed & {*found})) for found in members.values())
