"""Places for groups of tensors under a height: all at once, step by step, by what is still needed.

While the steps of a network pass, only what is in memory matters: two ways to place what came before are one, if they
agree on what is still needed. So from step to step a set of such ways is kept; each new group goes to both ends of each
gap, and to where it leaves room for one that comes later. First, groups that find a place however the others lie are
put aside, as in the coloring of graphs (Chaitin et al. 1981).
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nbcompile.core.memory.arena import ALIGNMENT, Buffer

KEPT_WAYS = 300
"""Ways to place what is in memory that are followed at once; of more, these are drawn."""

Span = tuple[int, int]
"""From the first to behind the last, in units of ``ALIGNMENT`` bytes."""


@dataclass(frozen=True)
class Footprint:
    """A group as rectangles of bytes and steps.

    Attributes:
        rows: one a rectangle; columns are begin, end, first step, last step.
    """

    rows: np.ndarray

    @classmethod
    def of(cls, parts: Sequence[tuple[int, Buffer]]) -> "Footprint":
        """Buffers, each with its offset in the group."""
        return cls(np.array([(at, at + b.nbytes, b.first, b.last) for at, b in parts], np.int64))

    @cached_property
    def units(self) -> int:
        """Units from the lowest to the highest."""
        return -(-int(self.rows[:, 1].max()) // ALIGNMENT)

    @cached_property
    def steps(self) -> Span:
        """The first and the last step at which it is needed."""
        return int(self.rows[:, 2].min()), int(self.rows[:, 3].max())

    def barred_by(self, other: "Footprint") -> list[Span]:
        """Where it cannot start, from the start of another, because some of their rectangles would meet."""
        (a0, a1, a2, a3), (b0, b1, b2, b3) = self.rows.T[:, :, None], other.rows.T[:, None, :]
        meet = (a2 <= b3) & (b2 <= a3)
        lows = (b0 - a1)[meet] // ALIGNMENT + 1
        highs = -((a0 - b1)[meet] // ALIGNMENT)
        return _joined(zip(lows.tolist(), highs.tolist(), strict=True))


def _joined(spans: Iterable[Span]) -> list[Span]:
    found: list[Span] = []
    for low, high in sorted(spans):
        if found and low <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], high)
        else:
            found.append((low, high))
    return found


class Conflicts:
    """Which shapes are in each other's way.

    Attributes:
        shapes: all of them.
        of: for each shape, the others that are needed at a step at which it is, and where it cannot start from theirs.
    """

    def __init__(self, shapes: Sequence[Footprint]) -> None:
        self.shapes = shapes
        self.of: list[list[tuple[int, list[Span]]]] = [[] for _ in shapes]
        there: list[int] = []
        for i in sorted(range(len(shapes)), key=lambda i: shapes[i].steps[0]):
            there = [j for j in there if shapes[j].steps[1] >= shapes[i].steps[0]]
            for j in there:
                if spans := shapes[i].barred_by(shapes[j]):
                    self.of[i].append((j, spans))
                    self.of[j].append((i, [(1 - high, 1 - low) for low, high in reversed(spans)]))
            there.append(i)

    def lowest(self, i: int, starts: Sequence[int | None]) -> int:
        """The lowest free start of a shape, where those that are placed have one."""
        spans = [
            (at + low, at + high) for j, barred in self.of[i] if (at := starts[j]) is not None for low, high in barred
        ]
        return gaps(spans)[0][0]

    def aside(self, height: int) -> list[int]:
        """Shapes that find a place under ``height`` however those lie that are not put aside before them."""
        barred = [sum(high - low for _, spans in rows for low, high in spans) for rows in self.of]
        taken, queue = [False] * len(self.shapes), list(range(len(self.shapes)))
        found = []
        while queue:
            i = queue.pop()
            if taken[i] or barred[i] > height - self.shapes[i].units:
                continue
            taken[i] = True
            found.append(i)
            for j, spans in self.of[i]:
                barred[j] -= sum(high - low for low, high in spans)
                queue.append(j)
        return found


def gaps(spans: list[Span], top: int = 2**62) -> list[Span]:
    """What ``spans`` leave of the starts from 0 to ``top``; both ends are free."""
    free, at = [], 0
    for low, high in sorted(spans):
        if low > at:
            free.append((at, min(low - 1, top)))
        at = max(at, high)
        if at > top:
            return free
    return [*free, (at, top)]


def places_under(conflicts: Conflicts, height: int) -> list[int] | None:
    """Starts of all shapes, in units, so that none ends above ``height``; None if none were found."""
    aside = conflicts.aside(height)
    rest = sorted(set(range(len(conflicts.shapes))) - set(aside))
    steps, units = [one.steps for one in conflicts.shapes], [one.units for one in conflicts.shapes]
    forward = sorted(rest, key=lambda i: (steps[i][0], -units[i]))
    backward = sorted(rest, key=lambda i: (-steps[i][1], -units[i]))
    for order in (forward, backward):
        placed = _Walk(conflicts, order, height).starts()
        if placed is not None:
            starts: list[int | None] = [placed.get(i) for i in range(len(conflicts.shapes))]
            for i in reversed(aside):
                starts[i] = conflicts.lowest(i, starts)
            return [at for at in starts if at is not None]
    return None


_Way = tuple[int, ...]
"""Starts of the shapes that are still needed."""


class _Walk:
    """One walk through time.

    Args:
        conflicts: of all shapes.
        order: of those that are placed.
        height: not to be exceeded.
    """

    def __init__(self, conflicts: Conflicts, order: Sequence[int], height: int) -> None:
        self.order, self.height, self.shapes = order, height, conflicts.shapes
        self.number = {i: k for k, i in enumerate(order)}
        self.of = {i: [(j, spans) for j, spans in conflicts.of[i] if j in self.number] for i in order}
        self.until = {i: max((self.number[j] for j, _ in self.of[i]), default=0) for i in order}
        self.random = random.Random(0)

    def starts(self) -> dict[int, int] | None:
        """Of all that are placed; None if no way is left at some step."""
        trail: list[dict[_Way, tuple[_Way, int]]] = []
        ways: Iterable[_Way] = [()]
        held: list[int] = []
        for k, i in enumerate(self.order):
            kept = [at for at, j in enumerate(held) if self.until[j] > k]
            found = self._placed(i, ways, held, kept)
            if not found:
                return None
            if len(found) > KEPT_WAYS:
                found = dict(self.random.sample(list(found.items()), KEPT_WAYS))
            trail.append(found)
            ways, held = found, [held[at] for at in kept] + ([i] if self.until[i] > k else [])
        placed: dict[int, int] = {}
        way = next(iter(ways))
        for i, found in zip(reversed(self.order), reversed(trail), strict=True):
            way, placed[i] = found[way]
        return placed

    def _placed(
        self, i: int, ways: Iterable[_Way], held: Sequence[int], kept: Sequence[int]
    ) -> dict[_Way, tuple[_Way, int]]:
        """Ways with one shape more, each with the way that it comes from and the start of the shape."""
        k, top = self.number[i], self.height - self.shapes[i].units
        at = {j: place for place, j in enumerate(held)}
        barring = [(at[j], spans) for j, spans in self.of[i] if self.number[j] < k]
        room = self._room_for_later(i)
        found: dict[_Way, tuple[_Way, int]] = {}
        for way in ways:
            spans = [(way[place] + low, way[place] + high) for place, barred in barring for low, high in barred]
            left = tuple(way[place] for place in kept)
            for low, high in gaps(spans, top):
                for start in {low, high, *(x for x in room if low < x < high)}:
                    found.setdefault((*left, start) if self.until[i] > k else left, (way, start))
        return found

    def _room_for_later(self, i: int) -> set[int]:
        """Starts at which shapes that come later fit right below or above, if they are the lowest or the highest."""
        later = [
            (self.height - self.shapes[j].units, spans) for j, spans in self.of[i] if self.number[j] > self.number[i]
        ]
        return {start for top, spans in later for low, high in spans for start in (high, top + low - 1)}
