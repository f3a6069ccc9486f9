"""A file's graph while it is rewritten: steps and tensors, of which those of the file keep their numbers.

Nothing here touches the file's bytes, so that many ways can be tried; `emit` writes the one that is taken.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import NamedTuple

from nbcompile.core.memory.arena import Buffer
from nbcompile.exporters.to_tflite.file.parts import File
from nbcompile.exporters.to_tflite.run.arena import PART

INPUT = -1
"""The step before the first, at which inputs are there."""


class DraftTensor(NamedTuple):
    """What is computed.

    Attributes:
        shape: of it.
        like: number of the file's tensor whose type and scale it has.
        itemsize: bytes of a value.
        name: in the file.
    """

    shape: tuple[int, ...]
    like: int
    itemsize: int
    name: str

    @property
    def nbytes(self) -> int:
        """Of its values."""
        return prod(self.shape) * self.itemsize


@dataclass(frozen=True)
class DraftStep:
    """An operator.

    Attributes:
        name: as in the schema.
        inputs: numbers of tensors, constants too; -1 is an input that is not there.
        outputs: likewise.
        op: the operator of the file that it is, or a part of; None for those that are new.
        numbers: of a new one: ``SLICE`` begins and sizes, ``PAD`` what is added before and after each dimension,
            ``CONCATENATION`` nothing: it joins rows.
        valid: whether it is a part of the file's operator that pads no more.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    op: int | None = None
    numbers: tuple[tuple[int, ...], ...] = ()
    valid: bool = False


@dataclass
class Draft:
    """A graph.

    Attributes:
        file: what it comes from.
        steps: in the order of execution.
        made: tensors that are not the file's; the first has the number after the file's last.
        kept: tensors that hold rows for a later strip: they are copied away from what they are part of.
        streams: input and output of each region that is computed in strips.
    """

    file: File
    steps: list[DraftStep] = field(default_factory=list)
    made: list[DraftTensor] = field(default_factory=list)
    kept: set[int] = field(default_factory=set)
    streams: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def of(cls, file: File) -> "Draft":
        """The file as it is."""
        return cls(file, [DraftStep(op.name, op.inputs, op.outputs, op.index) for op in file.ops])

    def blank(self) -> "Draft":
        """Another of the same file, without steps; what is known of the file is not looked up again."""
        new = Draft(self.file)
        new.__dict__ |= {"stored": self.stored, "constants": self.constants}
        return new

    def tensor(self, number: int) -> DraftTensor:
        """By its number."""
        stored = self.stored
        return stored[number] if number < len(stored) else self.made[number - len(stored)]

    @cached_property
    def stored(self) -> tuple[DraftTensor, ...]:
        """The file's tensors."""
        return tuple(DraftTensor(t.shape, t.index, t.dtype.itemsize, t.name) for t in self.file.tensors)

    def like(self, number: int, shape: Sequence[int], what: str) -> int:
        """A new tensor of another shape."""
        _, like, itemsize, _ = self.tensor(number)
        name = f"{self.stored[like].name}{PART}{len(self.made)} {what}"
        self.made.append(DraftTensor(tuple(shape), like, itemsize, name))
        return len(self.stored) + len(self.made) - 1

    @cached_property
    def constants(self) -> frozenset[int]:
        """Numbers of the file's tensors that take no memory while it runs."""
        return frozenset(t.index for t in self.file.tensors if t.data is not None or not t.nbytes)

    def activations(self, numbers: Iterable[int]) -> list[int]:
        """Those of ``numbers`` that take memory."""
        return [n for n in numbers if n >= 0 and n not in self.constants]

    def lifetimes(self) -> dict[int, Buffer]:
        """From which step to which each tensor is kept, as TFLite Micro keeps them."""
        ends = (*self.file.inputs, *self.file.outputs)
        first = dict.fromkeys(self.activations(ends), INPUT)
        last = dict(first)
        for number, step in enumerate(self.steps):
            for n in self.activations(step.inputs):
                first.setdefault(n, INPUT)
                last[n] = number
            for n in self.activations(step.outputs):
                first[n] = last[n] = number
        last |= dict.fromkeys(self.activations(self.file.outputs), len(self.steps) - 1)
        held = {n: self.tensor(n) for n in first}
        return {n: Buffer(tensor.name, tensor.nbytes, first[n], last[n]) for n, tensor in held.items()}
