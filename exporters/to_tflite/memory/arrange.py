"""A file with its memory arranged: order, strips, places; its outputs are proved equal to the bit."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nbcompile.core.errors import ExportError
from nbcompile.core.memory.arena import Buffer
from nbcompile.core.progress import step
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.options import Limits
from nbcompile.exporters.to_tflite.file.parts import File
from nbcompile.exporters.to_tflite.memory.draft import Draft
from nbcompile.exporters.to_tflite.memory.emit import emit
from nbcompile.exporters.to_tflite.memory.layout import MemoryLayout, place_groups
from nbcompile.exporters.to_tflite.memory.order import reordered
from nbcompile.exporters.to_tflite.memory.overlaps import IN_PLACE, KEPT, OVER, overlapping_groups
from nbcompile.exporters.to_tflite.memory.search import Way, ways
from nbcompile.exporters.to_tflite.memory.strips import in_strips
from nbcompile.exporters.to_tflite.memory.windows import stages
from nbcompile.exporters.to_tflite.run.arena import Arena, measure_arena, scratch_of
from nbcompile.exporters.to_tflite.run.drawn import drawn
from nbcompile.exporters.to_tflite.run.interpreters import Sample, run_file

log = logging.getLogger("nbcompile")

FREE = 0.01
"""Work more than the file's own, as a share, that is done where no budget asks for it."""

LOW_ENOUGH = 0.0025
"""Share of the most bytes that are needed at once, by which a plan may be higher without another being looked for."""

MOST_MEASURED = 4
"""Ways of which the arena is measured where the estimates are close to each other."""

PROVED_ON = 3
"""Random samples on which a rewritten file must give what the file gives."""


@dataclass(frozen=True)
class Arranged:
    """A file whose memory is arranged.

    Attributes:
        content: of it.
        arena: what it needs, as TFLite Micro measures it.
        before: the file in its order, of whose operators ``way`` speaks.
        way: what is computed in strips.
        ways: all that there are, from the file as it is to the least memory.
    """

    content: bytes
    arena: Arena
    before: bytes
    way: Way
    ways: tuple[Way, ...]

    @property
    def needed(self) -> int:
        """Bytes of the whole arena."""
        return self.arena.needed or self.arena.head


def arrange(
    content: bytes, limits: Limits, layers: Mapping[str, str] | None = None, known: Sequence[Sample] = ()
) -> Arranged:
    """The file by the cheapest way that fits its limits; where none does, by that which needs the least.

    Args:
        content: a file that TFLite Micro runs.
        limits: without one of memory, the smallest arena at no more work than ``FREE``.
        layers: names of layers, by the names of their results in the file.
        known: samples that the network was run on: whole numbers of inputs are as there.

    Raises:
        ExportError: if outputs would change.
    """
    ordered = emit(content, reordered(Draft.of(read_file(content))))
    file = read_file(ordered)
    with step("arranging its memory"):
        found = tuple(ways(file))
        chosen = _chosen(found, limits, lambda way: arranged(ordered, file, way, found, layers))
    with step("comparing it with the file as it was"):
        try:
            prove_equal(content, chosen.content, known)
        except ExportError as error:
            if not chosen.way.regions:
                raise
            log.warning("nothing is computed in strips: %s", error)
            chosen = arranged(ordered, file, found[0], found, layers)
            prove_equal(content, chosen.content, known)
    return chosen


def arranged(
    content: bytes, file: File, way: Way, found: tuple[Way, ...] = (), layers: Mapping[str, str] | None = None
) -> Arranged:
    """The file ``content``, which is ``file``, by one way."""
    draft = in_strips(Draft.of(file), stages(file), way.regions)
    alive, scratch = draft.lifetimes(), scratch_of(read_file(emit(content, draft)))
    places = _least_places(draft, alive, scratch)
    made = emit(content, draft, places.offsets)
    return Arranged(made, measure_arena(made, layers), content, way, found)


def _least_places(draft: Draft, alive: dict[int, Buffer], scratch: Sequence[Buffer]) -> MemoryLayout:
    """The lowest of several layouts: what lies in each other cannot lie elsewhere."""
    found = place_groups(overlapping_groups(draft, KEPT), alive, scratch)
    for without in ((KEPT, IN_PLACE), (KEPT, OVER), (), (IN_PLACE,)):
        if found.height <= (1 + LOW_ENOUGH) * found.least:
            break
        tried = place_groups(overlapping_groups(draft, *without), alive, scratch, found.height)
        found = min(found, tried, key=lambda one: one.height)
    return found


def _chosen(found: Sequence[Way], limits: Limits, made: Callable[[Way], Arranged]) -> Arranged:
    by_total = sorted(found, key=lambda way: way.peak + way.kept)
    if limits.least_sram:
        return min((made(way) for way in by_total[:MOST_MEASURED]), key=lambda one: one.needed)
    if limits.sram is None:
        return made(next(way for way in by_total if way.work <= FREE * found[0].macs))
    tried = []
    for one in map(made, _likely(found, by_total, limits.sram, made)):
        tried.append(one)
        if one.needed <= limits.sram:
            return one
    return min(tried, key=lambda one: one.needed)


def _likely(
    found: Sequence[Way], by_total: Sequence[Way], budget: int, made: Callable[[Way], Arranged]
) -> Iterator[Way]:
    """The cheapest first of those that should fit; and those that need the least."""
    yield found[0]
    tail = made(found[0]).arena.tail or 0
    fit = [way for way in found[1:] if tail + way.kept + way.peak <= budget]
    yield from fit[: 2 * MOST_MEASURED]
    yield from (way for way in by_total[:MOST_MEASURED] if way not in fit[: 2 * MOST_MEASURED])


def prove_equal(before: bytes, after: bytes, known: Sequence[Sample] = ()) -> None:
    """Check that two files give the same integers, in TFLite Micro and in LiteRT; whole numbers are of ``known``.

    Raises:
        ExportError: if they do not.
    """
    samples = drawn(read_file(before), PROVED_ON, known)
    for kernels in ("micro", "xnnpack"):
        ours, theirs = (run_file(content, samples, kernels=kernels, raw=True) for content in (before, after))
        pairs = ((a, b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True))
        if not all(np.array_equal(a, b) for a, b in pairs):
            raise ExportError(f"arranging its memory changed the outputs in {kernels}; please report this network")
