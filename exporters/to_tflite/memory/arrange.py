"""A file with the memory that it needs arranged: order, strips, places; proved equal to the bit before it is given out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nbcompile.core.errors import ExportError
from nbcompile.core.progress import step
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.parts import File
from nbcompile.exporters.to_tflite.memory.draft import Draft
from nbcompile.exporters.to_tflite.memory.emit import emit
from nbcompile.exporters.to_tflite.memory.layout import layout
from nbcompile.exporters.to_tflite.memory.order import reordered
from nbcompile.exporters.to_tflite.memory.overlaps import groups
from nbcompile.exporters.to_tflite.memory.search import Way, ways
from nbcompile.exporters.to_tflite.memory.strips import in_strips
from nbcompile.exporters.to_tflite.memory.windows import stages
from nbcompile.exporters.to_tflite.run.arena import Arena, measure_arena, scratch_of
from nbcompile.exporters.to_tflite.run.interpreters import Sample, run_file

LEAST = "least"
"""The budget of a user who wants the smallest arena."""

SAMPLES = 3
"""Of random integers, on which a rewritten file must give what the file gives."""


@dataclass(frozen=True)
class Arranged:
    """A file whose memory is arranged.

    Attributes:
        content: of it.
        arena: what it needs, as TFLite Micro measures it.
        way: what is computed in strips.
    """

    content: bytes
    arena: Arena
    way: Way

    @property
    def needed(self) -> int:
        """Bytes of the whole arena."""
        return self.arena.needed or self.arena.head


def arrange(content: bytes, budget: int | str | None, layers: dict[str, str] | None = None) -> tuple[Arranged, list[Way]]:
    """The cheapest way that fits a budget, and all ways there are.

    Args:
        content: a file that TFLite Micro runs.
        budget: bytes of the whole arena; `LEAST`; None: no operator more than the file has.
        layers: names of layers, by the names of their results in the file.

    Raises:
        ExportError: if no way fits, with the least that can be reached; or outputs would change.
    """
    content = emit(content, reordered(Draft.of(read_file(content))))
    file = read_file(content)
    with step("searching for an arrangement of its memory"):
        found = ways(file) if budget is not None else [Way((), 0, 0, 0)]
        chosen = _chosen(found, budget, lambda way: arranged(content, file, way, layers))
    prove_equal(content, chosen.content)
    return chosen, found


def arranged(content: bytes, file: File, way: Way, layers: dict[str, str] | None = None) -> Arranged:
    """The file by one way."""
    draft = in_strips(Draft.of(file), stages(file), way.regions)
    alive = draft.lifetimes()
    places = layout(groups(draft), alive, scratch_of(draft_file(emit(content, draft))))
    made = emit(content, draft, places.offsets)
    return Arranged(made, measure_arena(made, layers), way)


def draft_file(content: bytes) -> File:
    """A file that was written, to look at."""
    return read_file(content)


def _chosen(found: Sequence[Way], budget: int | str | None, made: Callable[[Way], Arranged]) -> Arranged:
    if budget is None:
        return made(found[0])
    tried: list[Arranged] = []
    if budget == LEAST:
        by_total = sorted(found, key=lambda way: way.peak + way.kept)
        return min((made(way) for way in by_total[:TRIED]), key=lambda one: one.needed)
    for way in _likely(found, int(budget), made):
        tried.append(way)
        if way.needed <= int(budget):
            return way
    least = min(tried, key=lambda one: one.needed)
    raise ExportError(f"no arrangement fits {budget:,} bytes: the least that was reached is {least.needed:,}")


TRIED = 4


def _likely(found: Sequence[Way], budget: int, made: Callable[[Way], Arranged]) -> Iterator[Arranged]:
    """The cheapest first of those that should fit, by what the file as it is keeps for good."""
    plain = made(found[0])
    yield plain
    tail = plain.arena.tail or 0
    fit = [way for way in found[1:] if tail + way.kept + way.peak <= budget]
    for way in fit[: 2 * TRIED]:
        yield made(way)
    if not fit:
        for way in sorted(found[1:], key=lambda way: way.peak + way.kept)[:TRIED]:
            yield made(way)


def prove_equal(before: bytes, after: bytes) -> None:
    """Check that two files give the same integers, in TFLite Micro and in LiteRT.

    Raises:
        ExportError: if they do not.
    """
    samples = random_samples(read_file(before))
    for kernels in ("micro", "xnnpack"):
        ours, theirs = (run_file(content, samples, kernels=kernels, raw=True) for content in (before, after))
        if any(not np.array_equal(a, b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True)):
            raise ExportError(f"arranging its memory changed the outputs in {kernels}: please report this")


def random_samples(file: File, count: int = SAMPLES) -> list[Sample]:
    """Inputs as the file stores them, over all that they can hold."""
    rng = np.random.default_rng(0)
    return [tuple(_random(file, i, rng) for i in file.inputs) for _ in range(count)]


def _random(file: File, number: int, rng: np.random.Generator) -> np.ndarray:
    tensor = file.tensors[number]
    if tensor.dtype.kind == "f":
        return rng.standard_normal(tensor.shape).astype(tensor.dtype)
    low, high = (0, 2) if tensor.dtype.kind == "b" else (np.iinfo(tensor.dtype).min, np.iinfo(tensor.dtype).max)
    return rng.integers(low, high, tensor.shape, endpoint=tensor.dtype.kind != "b").astype(tensor.dtype)
