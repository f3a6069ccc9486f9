"""Which operators to compute in strips, and in how many: ways between the least memory and the least copying.

A way goes from the first operator to the last, over single operators and over regions in strips. What is held at once
depends on the region alone, so that for every height there is a cheapest way below it: a shortest path, as msf-CNN
finds its own (Huang et al. 2025, arXiv:2505.11483). What costs is what the interpreter keeps for good, for every
operator.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from math import prod
from typing import NamedTuple

from nbcompile.exporters.to_tflite.file.parts import File, FileOp
from nbcompile.exporters.to_tflite.memory.draft import Draft, DraftStep
from nbcompile.exporters.to_tflite.memory.overlaps import wishes
from nbcompile.exporters.to_tflite.memory.strips import Region, RowChain, chain, one_in_strips
from nbcompile.exporters.to_tflite.memory.windows import stages

COUNTS = (2, 3, 4, 5, 6, 8, 9, 10, 12, 14, 16, 18, 24)
"""Numbers of strips that are tried."""

LONGEST = 40
"""Operators of a region."""

NO_BETTER = 3
"""Numbers of strips one after another that hold no less, after which no more are tried."""

GRAIN = 16
"""Bytes by which a way must hold less than the one before, and 1 % of them."""

KEPT_BYTES = {"CONV_2D": 200, "DEPTHWISE_CONV_2D": 258, "PAD": 88, "ADD": 712}
"""Bytes that TFLite Micro keeps for an operator, on 64-bit machines: fitted to what it reports for files like these."""

COPIED = {"PAD": 40, "SLICE": 5, "CONCATENATION": 5}
"""Tenths of a multiply-accumulate for a byte that an operator writes: an estimate, PAD goes element by element."""

KEPT_CHANNEL, KEPT_TENSOR = 7, 72
"""Likewise for a channel of a convolution, and for a tensor."""


class WayPart(NamedTuple):
    """A step of a way.

    Attributes:
        region: operators of it; of a single operator one strip.
        peak: bytes that are held at once, what passes by included.
        kept: bytes that the interpreter keeps for good because of it.
        work: what is copied because of it, in multiply-accumulates.
    """

    region: Region
    peak: int
    kept: int
    work: int


class Way(NamedTuple):
    """What to compute in strips.

    Attributes:
        regions: none is the file as it is.
        peak: bytes that are held at once; without gaps that a plan may leave.
        kept: bytes that are kept for good, more than for the file as it is.
        work: what is copied more, in multiply-accumulates.
        macs: multiply-accumulates of the file's layers; no way has more.
    """

    regions: tuple[Region, ...]
    peak: int
    kept: int
    work: int
    macs: int


def ways(file: File) -> list[Way]:
    """From the file as it is down to the least memory: each holds less than the one before, and keeps more."""
    edges = _edges(file)
    found: list[Way] = []
    macs = sum(_macs(file, op) for op in file.ops)
    for height in sorted({edge.peak for edge in edges}, reverse=True):
        if found and height > found[-1].peak - max(found[-1].peak, GRAIN * 100) // 100:
            continue
        way = _cheapest(len(file.ops), [edge for edge in edges if edge.peak <= height], macs)
        if way is None:
            break
        if not found or way.peak < found[-1].peak:
            found.append(way)
    return found


def _cheapest(ops: int, edges: list[WayPart], macs: int) -> Way | None:
    """The way that keeps the least for good, and of those the one that works least."""
    into: dict[int, list[WayPart]] = {}
    for edge in edges:
        into.setdefault(edge.region.last, []).append(edge)
    best: dict[int, tuple[int, int, WayPart | None]] = {0: (0, 0, None)}
    for at in range(1, ops + 1):
        reached = [
            (best[e.region.first][0] + e.kept, best[e.region.first][1] + e.work, e)
            for e in into.get(at, ())
            if e.region.first in best
        ]
        if reached:
            best[at] = min(reached, key=lambda one: one[:2])
    if ops not in best:
        return None
    taken: list[WayPart] = []
    at = ops
    while (last := best[at][2]) is not None:
        taken.append(last)
        at = last.region.first
    regions = tuple(e.region for e in reversed(taken) if e.region.strips > 1)
    return Way(regions, max(e.peak for e in taken), best[ops][0], best[ops][1], macs)


def _edges(file: File) -> list[WayPart]:
    """Single operators, and regions in strips that hold less than their operators one by one.

    Where most is held, regions are tried first: nothing can hold less than the best of those around an operator, so
    that where less is held as it is, no region is of use.
    """
    draft = Draft.of(file)
    alive = draft.lifetimes()
    held = [sum(b.nbytes for b in alive.values() if b.first <= at <= b.last) for at in range(len(file.ops))]
    edges = [WayPart(Region(at, at + 1, 1), height, 0, 0) for at, height in enumerate(held)]
    chains = dict(_chains(draft))
    ports = draft.activations((*file.inputs, *file.outputs))
    floor = max([max(held, default=0) // 16, *(alive[n].nbytes for n in ports)])
    for at in sorted(range(len(held)), key=lambda at: -held[at]):
        if held[at] <= floor:
            break
        for first, last in [one for one in chains if one[0] <= at < one[1]]:
            found = chains.pop((first, last))
            ends = {found.source, found.out}
            beside = sum(b.nbytes for n, b in alive.items() if n not in ends and b.first < first and b.last >= last)
            parts = _in_strips(draft, found, Region(first, last, 1), beside, alive[found.source].last >= last)
            edges += [part for part in parts if part.peak < max(held[first:last])]
        floor = max(floor, min(e.peak for e in edges if e.region.first <= at < e.region.last))
    return edges


def _chains(draft: Draft) -> Iterator[tuple[tuple[int, int], RowChain]]:
    """Regions that can be computed in strips, by their operators."""
    known, count = stages(draft.file), len(draft.file.ops)
    for first in range(count):
        for last in range(first + 2, min(first + LONGEST, count) + 1):
            if last - 1 not in known:
                break
            found = chain(draft, known, first, last)
            if found is not None:
                yield (first, last), found


def _in_strips(before: Draft, found: RowChain, region: Region, beside: int, stays: bool) -> Iterator[WayPart]:
    """A region in several numbers of strips, as long as more of them hold less.

    Args:
        before: the file as it is.
        found: the region.
        region: its operators.
        beside: bytes that are held meanwhile for others.
        stays: whether the region's input is needed after it.
    """
    plain = _kept(before, region.first, region.last)
    least, worse = None, 0
    for count in COUNTS:
        if count > before.tensor(found.out).shape[1] or worse == NO_BETTER:
            return
        draft = one_in_strips(before, found, count)
        peak = beside + _most_held(draft, found, stays)
        worse = 0 if least is None or peak < least else worse + 1
        if not worse:
            least = peak
            work = _copied(draft, draft.steps) - _copied(before, before.steps[region.first : region.last])
            yield WayPart(region._replace(strips=count), peak, _kept(draft, 0, len(draft.steps)) - plain, work)


def _kept(draft: Draft, first: int, last: int) -> int:
    """Bytes that the interpreter keeps for some steps."""
    steps = draft.steps[first:last]
    channels = sum(draft.tensor(s.outputs[0]).shape[-1] for s in steps if s.name.endswith("CONV_2D"))
    return sum(KEPT_BYTES.get(s.name, 0) for s in steps) + KEPT_CHANNEL * channels + KEPT_TENSOR * len(steps)


def _copied(draft: Draft, steps: Sequence[DraftStep]) -> int:
    """What steps copy, in multiply-accumulates."""
    return sum(COPIED.get(s.name, 0) * draft.tensor(s.outputs[0]).nbytes for s in steps) // 10


def _macs(file: File, op: FileOp) -> int:
    """Multiply-accumulates of an operator with weights."""
    if op.name not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        return 0
    weights, out = file.tensors[op.inputs[1]].shape, file.tensors[op.outputs[0]].shape
    return prod(out) * (prod(weights[1:3]) if op.name == "DEPTHWISE_CONV_2D" else prod(weights[1:]))


def _most_held(draft: Draft, found: RowChain, stays: bool) -> int:
    """Bytes that are held at once while a region runs; what lies in something else that is held counts once."""
    alive = draft.lifetimes()
    if stays:
        alive[found.source] = replace(alive[found.source], last=len(draft.steps))
    outer: dict[int, int] = {}
    for wish in wishes(draft, alive):
        outer.setdefault(wish.inner, wish.outer)
    more = [0] * (len(draft.steps) + 1)
    touched = {n for step in draft.steps for n in draft.activations((*step.inputs, *step.outputs))}
    for number in touched:
        held = alive[number]
        at, end = max(held.first, 0), min(held.last, len(draft.steps) - 1)
        around = sorted((alive[n].first, alive[n].last) for n in _all_around(number, outer))
        for first, last in (*around, (end + 1, end + 1)):
            if at < min(first, end + 1):  # until there it is in nothing else
                more[at] += held.nbytes
                more[min(first, end + 1)] -= held.nbytes
            at = max(at, last + 1)
    return max(accumulate(more))


def _all_around(number: int, outer: Mapping[int, int]) -> list[int]:
    """What a tensor lies in, and what that lies in, and so on."""
    found: list[int] = []
    while (number := outer.get(number, -1)) >= 0 and number not in found:
        found.append(number)
    return found
