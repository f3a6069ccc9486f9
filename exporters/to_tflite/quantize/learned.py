"""Ranges that training found (``nbcompile train --int8``), in place of those of a calibration set.

They are kept by the place of a tensor among all that the float file computes: names depend on how a network came here
(a graph that was saved has fewer than the class that it was made of), the order of its operators does not. Copies that
`shared_scales` made are made again, so that the file has the scales that were trained, and no others.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nbcompile.core.errors import UsageError
from nbcompile.core.example import Inputs
from nbcompile.exporters.to_tflite.file.flatbuffer import File, read_file
from nbcompile.exporters.to_tflite.file.pairs import JOINING, KEEPING
from nbcompile.exporters.to_tflite.file.ports import FloatModel
from nbcompile.exporters.to_tflite.quantize.masks import with_lifted_masks
from nbcompile.exporters.to_tflite.quantize.ranges import Range, Ranges
from nbcompile.exporters.to_tflite.quantize.shared_scales import copies_in, name_of_copy, with_copies

_REMEDY = "train again with --int8, or give --calibration and --ranges minmax"

_INPUT = "input"


@dataclass(frozen=True)
class LearnedRange:
    """Of one tensor that the float file computes.

    Attributes:
        kind: of the operator that computes it, or ``input``.
        shape: in the file.
        limits: (lowest, highest) value that is kept; 0 is always inside.
    """

    kind: str
    shape: tuple[int, ...]
    limits: Range


@dataclass(frozen=True)
class LearnedCopy:
    """Of a copy of a tensor, in a scale of its own.

    Attributes:
        source: place of that tensor among all.
        reader: place of the result of the one operator that reads the copy.
        limits: as of `LearnedRange`.
    """

    source: int
    reader: int
    limits: Range


@dataclass(frozen=True)
class LearnedRanges:
    """What training found.

    Attributes:
        values: of each float tensor, inputs first, then in the order of execution.
        copies: of copies.
    """

    values: tuple[LearnedRange, ...]
    copies: tuple[LearnedCopy, ...] = ()

    @classmethod
    def of(cls, file: File, ranges: Mapping[int, Range]) -> "LearnedRanges":
        """The ``ranges`` of the tensors of ``file``, by index."""
        own = _computed(file)
        places = {index: place for place, (_, index) in enumerate(own)}
        copies = copies_in(file)
        return cls(
            tuple(LearnedRange(kind, file.tensors[i].shape, ranges[i]) for kind, i in own),
            tuple(LearnedCopy(places[source], places[reader], ranges[i]) for i, (source, reader) in copies.items()),
        )

    def to_json(self) -> dict[str, Any]:
        """For the record of a trained file."""
        values = [[x.kind, list(x.shape), *x.limits] for x in self.values]
        return {"ranges": values, "copies": [[x.source, x.reader, *x.limits] for x in self.copies]}

    @classmethod
    def from_json(cls, record: Any) -> "LearnedRanges":
        """The inverse of `to_json`.

        Raises:
            UsageError: if it is damaged.
        """
        try:
            values = tuple(
                LearnedRange(str(kind), tuple(map(int, shape)), _limits(low, high))
                for kind, shape, low, high in record["ranges"]
            )
            places = range(len(values))
            copies = tuple(
                LearnedCopy(places[source], places[reader], _limits(low, high))
                for source, reader, low, high in record["copies"]
            )
        except (TypeError, ValueError, LookupError) as error:
            raise UsageError(f"the ranges that training with --int8 recorded are damaged: {_REMEDY}") from error
        return cls(values, copies)

    def within(self, inputs: Inputs) -> Inputs:
        """``inputs``, those in floating point clipped to the ranges of the network's inputs."""
        limits = (x.limits for x in self.values if x.kind == _INPUT)
        return tuple(x.clamp(*next(limits)) if x.is_floating_point() else x for x in inputs)

    def by_name(self, model: FloatModel) -> dict[str, Range]:
        """The ranges by the names of the tensors of ``model``, and of the copies that it is to get.

        Raises:
            UsageError: if they are of another network.
        """
        file = read_file(model.content)
        own = _computed(file)
        for (kind, index), x in zip(own, self.values, strict=False):
            name, shape = file.tensors[index].name, file.tensors[index].shape
            if (kind, shape) != (x.kind, x.shape):
                raise _another_network(f"'{name}' is {kind} {shape} where they have {x.kind} {x.shape}")
        if len(own) != len(self.values):
            raise _another_network(f"it computes {len(own)} values, and they are of {len(self.values)}")
        names = [file.tensors[index].name for _, index in own]
        found = {name: x.limits for name, x in zip(names, self.values, strict=True)}
        return found | {name_of_copy(names[x.source], names[x.reader]): x.limits for x in self.copies}


def _limits(low: Any, high: Any) -> Range:
    if not (math.isfinite(high - low) and low <= 0 <= high and low < high):
        raise ValueError(low, high)
    return float(low), float(high)


def _computed(file: File) -> list[tuple[str, int]]:
    """The float tensors that ``file`` computes, but for copies: by what, and their indices."""
    copies = copies_in(file)
    written = [(op.name, i) for op in file.ops for i in op.outputs if i not in copies]
    return [
        (kind, i) for kind, i in ([(_INPUT, i) for i in file.inputs] + written) if file.tensors[i].dtype.kind == "f"
    ]


def with_learned_ranges(model: FloatModel, learned: Mapping[str, Range]) -> tuple[FloatModel, Ranges]:
    """``model`` with the copies that were trained, and its ranges.

    Args:
        model: in the form for its target.
        learned: by name, as of the form before (`LearnedRanges.by_name`).

    Raises:
        UsageError: if the target's form has tensors that were not trained.
    """
    model, _ = with_lifted_masks(model, _by_index(read_file(model.content), learned))
    file = read_file(model.content)
    reads = [(op, i) for op in file.ops if op.name in (*KEEPING, *JOINING) for i in dict.fromkeys(op.inputs) if i >= 0]
    name = {tensor.index: tensor.name for tensor in file.tensors}
    copies = [(op, i) for op, i in reads if name_of_copy(name[i], name[op.outputs[0]]) in learned]
    model = with_copies(model, file, copies)
    return model, _by_index(read_file(model.content), learned)


def _by_index(file: File, learned: Mapping[str, Range]) -> Ranges:
    """The range of every tensor that is computed.

    The form for TFLite Micro has a few tensors more; each shares its scale with one that was trained.
    """
    floats = [i for i in (*file.inputs, *file.writers) if file.tensors[i].dtype.kind == "f"]
    kept = {i: learned[file.tensors[i].name] for i in floats if file.tensors[i].name in learned}
    for op in [*file.ops, *reversed(file.ops)]:
        if op.name in (*KEEPING, *JOINING):
            sharing = [i for i in (*op.outputs, *op.inputs) if i in floats]
            known = next((kept[i] for i in sharing if i in kept), None)
            kept |= {i: known for i in sharing if i not in kept and known is not None}
    if missing := [file.tensors[i].name for i in floats if i not in kept]:
        raise _another_network(f"they have none for '{missing[0]}', one of {len(missing)}")
    return Ranges(kept, kept, (), 0)


def _another_network(how: str) -> UsageError:
    return UsageError(f"the ranges that training with --int8 recorded are of another network: {how}; {_REMEDY}")
