"""Which operators to compute in strips, and in how many: ways between the least memory and the least copying.

A way goes from the first operator to the last, over single operators and over regions in strips. What is held at once
depends on the region alone, so that for every height there is a cheapest way below it: a shortest path, as msf-CNN
finds its own (Huang et al. 2025, arXiv:2505.11483). What costs is what the interpreter keeps for good, for every
operator.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
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
    edges = list(_edges(file))
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


def _edges(file: File) -> Iterator[WayPart]:
    draft = Draft.of(file)
    alive = draft.lifetimes()
    held = [sum(b.nbytes for b in alive.values() if b.first <= at <= b.last) for at in range(len(file.ops))]
    for at, height in enumerate(held):
        yield WayPart(Region(at, at + 1, 1), height, 0, 0)
    known, least = stages(file), max(held) // 16
    for first in range(len(file.ops)):
        for last in range(first + 2, min(first + LONGEST, len(file.ops)) + 1):
            if last - 1 not in known:
                break
            found = chain(draft, known, first, last) if max(held[first:last]) >= least else None
            if found is None:
                continue
            ends = {found.source, found.out}
            beside = sum(b.nbytes for n, b in alive.items() if n not in ends and b.first < first and b.last >= last)
            yield from _in_strips(draft, found, Region(first, last, 1), beside, alive[found.source].last >= last)


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
    least = None
    for count in COUNTS:
        if count > before.tensor(found.out).shape[1]:
            return
        draft = one_in_strips(before.file, found, count)
        peak = beside + _most_held(draft, found, stays)
        if least is None or peak < least:
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
    total = [0] * len(draft.steps)
    touched = {n for step in draft.steps for n in draft.activations((*step.inputs, *step.outputs))}
    for number in touched:
        around = [alive[n] for n in _all_around(number, outer)]
        for step in range(max(alive[number].first, 0), min(alive[number].last, len(draft.steps) - 1) + 1):
            if not any(one.first <= step <= one.last for one in around):
                total[step] += alive[number].nbytes
    return max(total)


def _all_around(number: int, outer: Mapping[int, int]) -> list[int]:
    """What a tensor lies in, and what that lies in, and so on."""
    found: list[int] = []
    while (number := outer.get(number, -1)) >= 0 and number not in found:
        found.append(number)
    return found
