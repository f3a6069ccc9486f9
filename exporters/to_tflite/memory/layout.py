"""Where tensors lie: offsets by search, lower than TFLite Micro's own planner finds them.

Several orders, each group at the lowest place where it fits; then, at random, what stands high is placed earlier, and
stays so where that is no worse. Nothing can lie lower than the most bytes that are needed at once; where a layout
reaches that, the search ends.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nbcompile.core.memory.arena import Buffer, aligned, covered
from nbcompile.exporters.to_tflite.memory.overlaps import Group

SHUFFLES = 300
"""How often something is placed earlier."""

HIGH, OFTEN = 0.97, 0.7
"""Above this share of the height is what it depends on; so often it is one of these that is placed earlier."""


@dataclass(frozen=True)
class MemoryLayout:
    """A plan.

    Attributes:
        offsets: of tensors, by their numbers; bytes from the start of the arena.
        height: bytes of all.
        least: the most bytes that are needed at once: no plan for these groups is lower.
    """

    offsets: dict[int, int]
    height: int
    least: int


def place_groups(groups: Sequence[Group], alive: dict[int, Buffer], scratch: Sequence[Buffer] = ()) -> MemoryLayout:
    """Places for all.

    Args:
        groups: tensors whose places depend on each other.
        alive: when each tensor is needed.
        scratch: memory that kernels ask for; a place is left for it, the interpreter finds it.
    """
    shapes = [_Shape.of([(at, alive[n]) for n, at in group.items()]) for group in groups]
    shapes += [_Shape.of([(0, one)]) for one in scratch]
    least = _most_at_once(shapes)
    orders = [
        sorted(range(len(shapes)), key=key)
        for key in (
            lambda i: (-shapes[i].size, shapes[i].first),
            lambda i: (-shapes[i].size * shapes[i].time, shapes[i].first),
            lambda i: (-shapes[i].tallest, shapes[i].first),
            lambda i: (shapes[i].first, -shapes[i].size),
        )
    ]
    order = min(orders, key=lambda order: _placed(shapes, order)[1])
    rng = random.Random(0)
    best = now = _placed(shapes, order)
    for _ in range(SHUFFLES):
        if best[1] <= least:
            break
        high = [i for i in order if now[0][i] + shapes[i].size > HIGH * now[1]]
        i = rng.choice(high if high and rng.random() < OFTEN else order)
        others = [j for j in order if j != i]
        at = rng.randrange(order.index(i) + 1)
        changed = [*others[:at], i, *others[at:]]
        found = _placed(shapes, changed)
        if found[1] <= now[1]:
            order, now = changed, found
        best = min(best, now, key=lambda one: one[1])
    offsets = {n: best[0][i] + at for i, group in enumerate(groups) for n, at in group.items()}
    return MemoryLayout(offsets, best[1], least)


@dataclass(frozen=True)
class _Shape:
    """A group as rectangles of bytes and time; columns are begin, end, first step, last step."""

    rows: np.ndarray

    @classmethod
    def of(cls, parts: Sequence[tuple[int, Buffer]]) -> "_Shape":
        return cls(np.array([(at, at + b.nbytes, b.first, b.last) for at, b in parts], np.int64))

    @property
    def size(self) -> int:
        """Bytes from the lowest to the highest."""
        return int(self.rows[:, 1].max())

    @property
    def tallest(self) -> int:
        """Bytes of the largest of them."""
        return int((self.rows[:, 1] - self.rows[:, 0]).max())

    @property
    def first(self) -> int:
        """The step at which the first of them is needed."""
        return int(self.rows[:, 2].min())

    @property
    def time(self) -> int:
        """Steps for which one of them is needed."""
        return int(self.rows[:, 3].max()) - self.first + 1


def _placed(shapes: Sequence[_Shape], order: Sequence[int]) -> tuple[list[int], int]:
    """Each at the lowest place that is free; the places, and the bytes of all."""
    starts, taken = [0] * len(shapes), np.empty((0, 4), np.int64)
    for i in order:
        rows = shapes[i].rows
        meet = (taken[None, :, 2] <= rows[:, None, 3]) & (rows[:, None, 2] <= taken[None, :, 3])
        below = (taken[None, :, 0] - rows[:, None, 1])[meet]  # starts above this and below that collide
        above = (taken[None, :, 1] - rows[:, None, 0])[meet]
        start = 0
        for low, high in sorted(zip(below.tolist(), above.tolist(), strict=True)):
            if start <= low:
                break
            if start < high:
                start = aligned(high)
        starts[i] = start
        moved = rows.copy()
        moved[:, :2] += start
        taken = np.concatenate([taken, moved])
    return starts, aligned(int(taken[:, 1].max(initial=0)))


def _most_at_once(shapes: Sequence[_Shape]) -> int:
    """Bytes that are needed at the step that needs most; of a group, what its tensors take together."""
    steps = range(int(max((s.rows[:, 3].max() for s in shapes), default=0)) + 1)
    total = np.zeros(len(steps), np.int64)
    for shape in shapes:
        for step in range(max(shape.first, 0), shape.first + shape.time):
            live = shape.rows[(shape.rows[:, 2] <= step) & (step <= shape.rows[:, 3])]
            total[step] += covered((int(row[0]), int(row[1])) for row in live)
    return int(total.max(initial=0))
