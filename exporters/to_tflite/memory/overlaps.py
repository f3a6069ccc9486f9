"""Tensors that may lie in each other's memory: parts of a whole, results over what is no longer needed.

A stock interpreter copies rows with SLICE and joins them with CONCATENATION. Where both ends of the copy lie at one
place, nothing moves and nothing is held twice. Which tensors may lie so is not argued but tried, byte by byte, on what
each step reads and writes: `sound`.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from math import prod
from typing import NamedTuple

import numpy as np

from nbcompile.core.memory.arena import Buffer
from nbcompile.exporters.to_tflite.memory.draft import Draft, DraftStep
from nbcompile.exporters.to_tflite.memory.windows import BY_ELEMENT

_SAME_BYTES = {"RESHAPE", "SQUEEZE", "EXPAND_DIMS"}

Group = dict[int, int]
"""Tensors whose places depend on each other: offset of each in bytes, from a common one."""


INSIDE, KEPT, OVER, IN_PLACE = "part", "kept", "over", "in place"
"""Why a tensor is to lie in another: as a part of it; rows that were kept for it, likewise; over what is no longer
needed; element by element."""


class Wish(NamedTuple):
    """That a tensor lies in another."""

    inner: int
    outer: int
    offset: int
    why: str


def overlapping_groups(draft: Draft, *without: str) -> list[Group]:
    """All tensors that are computed, in groups: as many as can lie in each other do.

    Args:
        draft: their graph.
        without: wishes that are not heard: what lies in each other cannot lie elsewhere.
    """
    contents = Contents(draft)
    alive = draft.lifetimes()
    home: dict[int, Group] = {n: {n: 0} for n in alive}
    for wish in wishes(draft, alive):
        one, other = home[wish.outer], home[wish.inner]
        if one is other or wish.why in without:
            continue
        shift = one[wish.outer] + wish.offset - other[wish.inner]
        both = one | {n: offset + shift for n, offset in other.items()}
        if sound(draft, both, contents):
            home |= dict.fromkeys(both, both)
    distinct = {id(group): group for group in home.values()}
    return [{n: at - min(group.values()) for n, at in group.items()} for group in distinct.values()]


def wishes(draft: Draft, alive: Mapping[int, Buffer]) -> Iterator[Wish]:
    """First what saves the most: parts of a whole, then a region's output over its input."""
    for step in draft.steps:
        if step.name == "CONCATENATION" and rows_alone(draft, step):
            offset = 0
            for part in step.inputs:
                yield Wish(part, step.outputs[0], offset, KEPT if part in draft.kept else INSIDE)
                offset += draft.tensor(part).nbytes
        elif step.op is None and step.name == "SLICE" and step.outputs[0] not in draft.kept:
            yield Wish(step.outputs[0], step.inputs[0], first_byte(draft, step), INSIDE)
    for source, out in draft.streams:
        fits = alive[out].nbytes <= alive[source].nbytes and alive[source].last < alive[out].first
        if fits and _never_overtakes(draft, source, out):
            yield Wish(out, source, 0, OVER)
    for number, step in enumerate(draft.steps):
        if step.name in BY_ELEMENT or step.name in _SAME_BYTES:
            for source in draft.activations(step.inputs):
                if alive[source].last == number and alive[source].nbytes == alive[step.outputs[0]].nbytes:
                    yield Wish(step.outputs[0], source, 0, IN_PLACE)


def _never_overtakes(draft: Draft, source: int, out: int) -> bool:
    """Whether what is read of a region's input lies behind what was written of its output, if they begin together."""
    writers = {n: number for number, step in enumerate(draft.steps) for n in step.outputs}
    reads = [
        (number, first_byte(draft, step) if step.op is None and step.name == "SLICE" else 0)
        for number, step in enumerate(draft.steps)
        if source in step.inputs
    ]
    end = 0
    for piece in _pieces(draft, writers, out):
        end += draft.tensor(piece).nbytes
        if any(number > writers[piece] and begin < end for number, begin in reads):
            return False
    return True


def _pieces(draft: Draft, writers: Mapping[int, int], number: int) -> list[int]:
    """The results of strips, from top to bottom, that a region's output is joined of."""
    step = draft.steps[writers[number]]
    if step.op is not None or step.name != "CONCATENATION":
        return [number]
    return [piece for part in step.inputs for piece in _pieces(draft, writers, part)]


def rows_alone(draft: Draft, step: DraftStep) -> bool:
    """Whether a CONCATENATION puts its inputs one behind the other in memory."""
    if step.op is None:
        return True
    axis = draft.file.ops[step.op].options.axis
    shape = draft.tensor(step.outputs[0]).shape
    return draft.activations(step.inputs) == list(step.inputs) and prod(shape[: axis % len(shape)]) == 1


def first_byte(draft: Draft, step: DraftStep) -> int:
    """Where in its input the rows of a SLICE begin."""
    _, _, *rest = draft.tensor(step.inputs[0]).shape
    return step.numbers[0][1] * prod(rest) * draft.tensor(step.inputs[0]).itemsize


class Contents:
    """What tensors hold, as a number for each byte: equal where a step copies."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.writers = {n: step for step in draft.steps for n in step.outputs}
        self.of = cache(self._of)

    def _of(self, number: int) -> np.ndarray:
        step, nbytes = self.writers.get(number), self.draft.tensor(number).nbytes
        if step is not None and step.op is None and step.name == "SLICE":
            begin = first_byte(self.draft, step)
            found: np.ndarray = self.of(step.inputs[0])[begin : begin + nbytes]
            return found
        if step is not None and step.name == "CONCATENATION" and rows_alone(self.draft, step):
            return np.concatenate([self.of(n) for n in step.inputs])
        if step is not None and step.name in _SAME_BYTES:
            same: np.ndarray = self.of(step.inputs[0])
            return same
        return (np.int64(number) << 32) + np.arange(nbytes, dtype=np.int64)


def sound(draft: Draft, group: Group, contents: Contents) -> bool:
    """Whether every step still reads what was written, where tensors lie as ``group`` says; others lie elsewhere."""
    base = min(group.values())
    place = {n: range(at - base, at - base + draft.tensor(n).nbytes) for n, at in group.items()}
    memory = np.full(max(r.stop for r in place.values()), -1, np.int64)

    def write(number: int) -> None:
        memory[place[number].start : place[number].stop] = contents.of(number)

    for number in draft.file.inputs:
        if number in place:
            write(number)
    for step in draft.steps:
        for number, begin, size in _read(draft, step):
            if number in place:
                start = place[number].start + begin
                if not np.array_equal(memory[start : start + size], contents.of(number)[begin : begin + size]):
                    return False
        for number in step.outputs:
            if number in place:
                if not _may_write(draft, step, number, place):
                    return False
                write(number)
    return all(
        np.array_equal(memory[place[n].start : place[n].stop], contents.of(n)) for n in draft.file.outputs if n in place
    )


def _read(draft: Draft, step: DraftStep) -> Iterator[tuple[int, int, int]]:
    """Which bytes of its inputs a step reads: from where, and how many."""
    for number in draft.activations(step.inputs):
        if step.op is None and step.name == "SLICE":
            yield number, first_byte(draft, step), draft.tensor(step.outputs[0]).nbytes
        else:
            yield number, 0, draft.tensor(number).nbytes


def _may_write(draft: Draft, step: DraftStep, out: int, place: dict[int, range]) -> bool:
    """Whether a step may write where its inputs lie: what is at its place already, or is read element by element."""
    target, at = place[out], 0
    for number in draft.activations(step.inputs):
        if number not in place:
            at += draft.tensor(number).nbytes
            continue
        source = place[number]
        if step.op is None and step.name == "SLICE":
            begin = source.start + first_byte(draft, step)
            same = begin == target.start
        elif step.name == "CONCATENATION":
            same = source.start == target.start + at
        else:
            same = source == target and (step.name in BY_ELEMENT or step.name in _SAME_BYTES)
        at += draft.tensor(number).nbytes
        if not same and source.start < target.stop and target.start < source.stop:
            return False
    return True
