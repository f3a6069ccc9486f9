"""Where tensors lie: offsets by search, lower than TFLite Micro's own planner finds them.

Several orders, each group at the lowest place where it fits; then all at once under a height that grows from the most
bytes that are needed at once: nothing can lie lower.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nbcompile.core.memory.arena import ALIGNMENT, Buffer, covered
from nbcompile.exporters.to_tflite.memory.fit import Conflicts, Footprint, places_under
from nbcompile.exporters.to_tflite.memory.overlaps import Group

ABOVE_LEAST = (0, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5)
"""Heights that are tried, as shares by which they are above the least."""


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


def place_groups(
    groups: Sequence[Group], alive: dict[int, Buffer], scratch: Sequence[Buffer] = (), below: int | None = None
) -> MemoryLayout:
    """Places for all.

    Args:
        groups: tensors whose places depend on each other.
        alive: when each tensor is needed.
        scratch: memory that kernels ask for; a place is left for it, the interpreter finds it.
        below: bytes; only what is lower is looked for.
    """
    shapes = [Footprint.of([(at, alive[n]) for n, at in group.items()]) for group in groups]
    shapes += [Footprint.of([(0, one)]) for one in scratch]
    conflicts, least = Conflicts(shapes), _most_at_once(shapes)
    starts = min((_in_order(conflicts, order) for order in _orders(shapes)), key=lambda s: _height(shapes, s))
    known = _height(shapes, starts) if below is None else min(_height(shapes, starts), below // ALIGNMENT)
    for share in ABOVE_LEAST:
        height = int((1 + share) * -(-least // ALIGNMENT))
        if known <= height:
            break
        if placed := places_under(conflicts, height):
            settled = _in_order(conflicts, sorted(range(len(shapes)), key=lambda i: placed[i]))
            starts = min((placed, settled), key=lambda s: _height(shapes, s))
            break
    offsets = {n: ALIGNMENT * starts[i] + at for i, group in enumerate(groups) for n, at in group.items()}
    return MemoryLayout(offsets, ALIGNMENT * _height(shapes, starts), least)


def _orders(shapes: Sequence[Footprint]) -> list[list[int]]:
    """Large ones first, those that take much memory for long, large tensors first, as they come."""
    sizes = [shape.units for shape in shapes]
    steps = [shape.steps for shape in shapes]
    largest = [int((shape.rows[:, 1] - shape.rows[:, 0]).max()) for shape in shapes]
    keys = (
        lambda i: (-sizes[i], steps[i][0]),
        lambda i: (-sizes[i] * (steps[i][1] - steps[i][0] + 1), steps[i][0]),
        lambda i: (-largest[i], steps[i][0]),
        lambda i: (steps[i][0], -sizes[i]),
    )
    return [sorted(range(len(shapes)), key=key) for key in keys]


def _in_order(conflicts: Conflicts, order: Sequence[int]) -> list[int]:
    """Each shape at the lowest place that is free."""
    starts: list[int | None] = [None] * len(order)
    for i in order:
        starts[i] = conflicts.lowest(i, starts)
    return [at for at in starts if at is not None]


def _height(shapes: Sequence[Footprint], starts: Sequence[int]) -> int:
    """Units of all."""
    return max((at + shape.units for at, shape in zip(starts, shapes, strict=True)), default=0)


def _most_at_once(shapes: Sequence[Footprint]) -> int:
    """Bytes that are needed at the step that needs most; of a group, what its tensors take together."""
    steps = range(int(max((s.rows[:, 3].max() for s in shapes), default=0)) + 1)
    total = np.zeros(len(steps), np.int64)
    for shape in shapes:
        for step in range(max(shape.steps[0], 0), shape.steps[1] + 1):
            live = shape.rows[(shape.rows[:, 2] <= step) & (step <= shape.rows[:, 3])]
            total[step] += covered((int(row[0]), int(row[1])) for row in live)
    return int(total.max(initial=0))
