"""Operators one after another, computed in strips of rows; rows that the next strip needs again are kept.

Nothing is computed twice, and no scale changes: outputs are equal to the bit. A strip is made of plain operators: the
rows of the region's input (SLICE), zero rows and columns (PAD), rows that were kept and new ones (CONCATENATION), the
operator itself without padding.

Source: the idea is that of MCUNetV2's patches (Lin et al. 2021, arXiv:2110.15352) with rows that are kept, as in
StreamNet (Zheng et al. 2023) and msf-CNN (Huang et al. 2025, arXiv:2505.11483); as operators of a stock interpreter it
is ours.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from nbcompile.core.errors import PreconditionError
from nbcompile.exporters.to_tflite.memory.draft import Draft, DraftStep
from nbcompile.exporters.to_tflite.memory.windows import RowStage, RowWindow

JOINED_AT_ONCE = 10
"""Tensors that TFLite Micro joins in one CONCATENATION at most."""


class Region(NamedTuple):
    """Operators ``first`` to ``last - 1`` of a file, in so many strips."""

    first: int
    last: int
    strips: int


@dataclass(frozen=True)
class RowChain:
    """Operators that can be computed in strips together.

    Attributes:
        stages: in order; PADs are part of others.
        source: number of the tensor that comes from outside.
        out: number of the one that others read.
    """

    stages: tuple[RowStage, ...]
    source: int
    out: int


def chain(draft: Draft, stages: Mapping[int, RowStage], first: int, last: int) -> RowChain | None:
    """Operators ``first`` to ``last - 1`` as a chain; None if they are none."""
    ops = draft.file.ops[first:last]
    if any(op.index not in stages for op in ops):
        return None
    made = {n for op in ops for n in op.outputs}
    parts = [stages[op.index] for op in ops]
    inside = {op.index for op in ops}
    if any(s.pad is not None and s.pad not in inside for s in parts):
        return None
    absorbed = {s.pad for s in parts} - {None}
    if any(not s.windows and s.op not in absorbed for s in parts):
        return None
    sources = {w.tensor for s in parts for w in s.windows} - made
    read_later = {n for op in draft.file.ops[last:] for n in op.inputs} | set(draft.file.outputs)
    out = made & read_later
    if len(sources) != 1 or len(out) != 1 or out != {parts[-1].out}:
        return None
    return RowChain(tuple(s for s in parts if s.windows), sources.pop(), out.pop())


class _Rows(NamedTuple):
    """Rows ``start`` to ``stop - 1`` of a map, those of its padding too, in a tensor; -1 where there are none."""

    tensor: int
    start: int
    stop: int


class _Strips:
    """One region that is being written.

    Args:
        draft: gets the steps.
        chain: of the region.
        count: of strips.
    """

    def __init__(self, draft: Draft, chain: RowChain, count: int) -> None:
        self.draft, self.chain, self.count = draft, chain, count
        self.done = dict.fromkeys((s.out for s in chain.stages), 0)
        self.readers: dict[int, list[tuple[RowStage, RowWindow]]] = {s.out: [] for s in chain.stages}
        for stage in chain.stages:
            for window in stage.windows:
                self.readers.setdefault(window.tensor, []).append((stage, window))
        self.queues: dict[tuple[int, int], _Rows] = {}
        self.pieces: list[int] = []

    def write(self) -> None:
        """All strips, and their results joined."""
        height = self._height(self.chain.out)
        if self.count > height:
            raise PreconditionError(f"{self.count} strips of {height} rows: take fewer")
        for number in range(self.count):
            ends = self._ends(-(-(number + 1) * height // self.count))
            for stage in self.chain.stages:
                if ends[stage.out] > self.done[stage.out]:
                    self._stage(stage, ends[stage.out], number == self.count - 1)
        joined(self.draft, self.pieces, self.chain.out)
        self.draft.streams.append((self.chain.source, self.chain.out))

    def _height(self, tensor: int) -> int:
        return self.draft.tensor(tensor).shape[1]

    def _ends(self, high: int) -> dict[int, int]:
        """How many rows of each tensor must be there when the region's output has ``high``."""
        ends = dict.fromkeys(self.done, 0) | {self.chain.out: high}
        for stage in reversed(self.chain.stages):
            for window in stage.windows:
                if window.tensor in ends and ends[stage.out]:
                    wanted = min(window.end(ends[stage.out]), self._height(window.tensor))
                    ends[window.tensor] = max(ends[window.tensor], wanted)
        return ends

    def _stage(self, stage: RowStage, high: int, final: bool) -> None:
        low, self.done[stage.out] = self.done[stage.out], high
        given = {w.tensor: self._window(stage, w, low, high, final) for w in stage.windows}
        before = self.draft.file.ops[stage.op]
        source = stage.windows[0].tensor
        padded = self.draft.file.ops[stage.pad].outputs[0] if stage.pad is not None else source
        inputs = tuple(given[source] if n == padded else given.get(n, n) for n in before.inputs)
        _, _, *rest = self.draft.tensor(stage.out).shape
        new = self.draft.like(stage.out, (1, high - low, *rest), f"rows {low} to {high - 1}")
        self.draft.steps.append(DraftStep(before.name, inputs, (new,), stage.op, valid=True))
        if stage.out == self.chain.out:
            self.pieces.append(new)
        for reader, window in self.readers[stage.out]:
            self._push(reader, window, _Rows(new, low, high))

    def _push(self, reader: RowStage, window: RowWindow, new: _Rows) -> None:
        """New rows for a reader: padded as it wants them, behind those that it kept."""
        height = self._height(window.tensor)
        above = window.pads[0] if new.start == 0 else 0
        below = window.pads[1] if new.stop == height else 0
        rows = _Rows(self._padded(new.tensor, above, below, window), new.start - above, new.stop + below)
        held = self.queues.get((reader.op, window.tensor))
        if held is None or held.tensor < 0:
            self.queues[reader.op, window.tensor] = rows
        else:
            both = joined(self.draft, [held.tensor, rows.tensor])
            self.queues[reader.op, window.tensor] = _Rows(both, held.start, rows.stop)

    def _window(self, stage: RowStage, window: RowWindow, low: int, high: int, final: bool) -> int:
        """The rows that a stage reads for its rows ``low`` to ``high - 1``."""
        begin, end = window.begin(low), window.end(high)
        if window.tensor == self.chain.source:
            height = self._height(window.tensor)
            inner = _rows(self.draft, window.tensor, max(begin, 0), min(end, height))
            return self._padded(inner, max(0, -begin), max(0, end - height), window)
        held = self.queues[stage.op, window.tensor]
        taken = _rows(self.draft, held.tensor, begin - held.start, end - held.start)
        left = max(window.begin(high), held.start)
        self.queues[stage.op, window.tensor] = _Rows(-1, held.stop, held.stop)
        if not final and left < held.stop:
            kept = _rows(self.draft, held.tensor, left - held.start, held.stop - held.start)
            if kept != held.tensor:
                self.draft.kept.add(kept)
            self.queues[stage.op, window.tensor] = _Rows(kept, left, held.stop)
        return taken

    def _padded(self, tensor: int, above: int, below: int, window: RowWindow) -> int:
        left, right = window.pads[2:]
        if not (above or below or left or right):
            return tensor
        _, height, width, channels = self.draft.tensor(tensor).shape
        shape = (1, height + above + below, width + left + right, channels)
        out = self.draft.like(tensor, shape, "padded")
        numbers = ((0, 0), (above, below), (left, right), (0, 0))
        self.draft.steps.append(DraftStep("PAD", (tensor,), (out,), numbers=numbers))
        return out


def _rows(draft: Draft, tensor: int, low: int, high: int) -> int:
    """Rows ``low`` to ``high - 1`` of a tensor."""
    _, height, *rest = draft.tensor(tensor).shape
    if (low, high) == (0, height):
        return tensor
    out = draft.like(tensor, (1, high - low, *rest), f"rows {low} to {high - 1}")
    numbers = ((0, low, 0, 0), (1, high - low, *rest))
    draft.steps.append(DraftStep("SLICE", (tensor,), (out,), numbers=numbers))
    return out


def joined(draft: Draft, parts: list[int], out: int | None = None) -> int:
    """``parts`` one below the other, as ``out`` or as a new tensor; in several steps where they are many."""
    while len(parts) > JOINED_AT_ONCE:
        size = max(-(-len(parts) // JOINED_AT_ONCE), 2)
        parts = [joined(draft, parts[i : i + size]) for i in range(0, len(parts), size)]
    if len(parts) == 1 and out is None:
        return parts[0]
    if out is None:
        height = sum(draft.tensor(part).shape[1] for part in parts)
        out = draft.like(parts[0], (1, height, *draft.tensor(parts[0]).shape[2:]), "joined")
    draft.steps.append(DraftStep("CONCATENATION", tuple(parts), (out,)))
    return out


def one_in_strips(before: Draft, chain: RowChain, count: int) -> Draft:
    """A region of a draft alone."""
    draft = before.blank()
    _Strips(draft, chain, count).write()
    return draft


def in_strips(draft: Draft, stages: Mapping[int, RowStage], regions: Iterable[Region]) -> Draft:
    """The file of ``draft`` with some regions in strips; they must not overlap.

    Raises:
        PreconditionError: if a region cannot be computed so.
    """
    new = draft.blank()
    at = 0
    for region in sorted(regions):
        new.steps += draft.steps[at : region.first]
        found = chain(draft, stages, region.first, region.last)
        if found is None or at > region.first:
            raise PreconditionError(f"operators {region.first} to {region.last - 1} cannot be computed in strips")
        _Strips(new, found, region.strips).write()
        at = region.last
    new.steps += draft.steps[at:]
    return new
