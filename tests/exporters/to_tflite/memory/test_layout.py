"""Places under a height: they never meet, and what is known to fit is found."""

import random

import pytest

from nbcompile.core.memory.arena import ALIGNMENT, Buffer
from nbcompile.exporters.to_tflite.memory import fit
from nbcompile.exporters.to_tflite.memory.fit import Conflicts, Footprint, gaps, places_under
from nbcompile.exporters.to_tflite.memory.layout import place_groups

Rectangle = tuple[int, int, int, int]
"""First step, last step, begin and end in units."""


def cut(rectangle: Rectangle, rng: random.Random, depth: int) -> list[Rectangle]:
    """A rectangle in parts that fill it."""
    first, last, low, high = rectangle
    if depth == 0 or rng.random() < 0.1:
        return [rectangle]
    if rng.random() < 0.5 and last > first:
        at = rng.randrange(first, last)
        return [*cut((first, at, low, high), rng, depth - 1), *cut((at + 1, last, low, high), rng, depth - 1)]
    if high - low > 1:
        at = rng.randrange(low + 1, high)
        return [*cut((first, last, low, at), rng, depth - 1), *cut((first, last, at, high), rng, depth - 1)]
    return [rectangle]


def buffers(parts: list[Rectangle], slack: int) -> dict[int, Buffer]:
    """Tensors that take the parts; odd numbers of bytes, up to ``slack`` less than whole units."""
    rng = random.Random(len(parts))
    return {
        i: Buffer(str(i), ALIGNMENT * (high - low) - rng.randint(0, slack), first, last)
        for i, (first, last, low, high) in enumerate(parts)
    }


def meet(alive: dict[int, Buffer], offsets: dict[int, int]) -> list[tuple[int, int]]:
    """Pairs that are in each other's memory at some step."""
    return [
        (i, j)
        for i, a in alive.items()
        for j, b in alive.items()
        if i < j
        and a.first <= b.last
        and b.first <= a.last
        and offsets[i] < offsets[j] + b.nbytes
        and offsets[j] < offsets[i] + a.nbytes
    ]


@pytest.mark.parametrize("seed", range(14))
def test_what_fills_a_rectangle_is_placed_in_it(seed: int) -> None:
    rng = random.Random(seed)
    height = rng.randrange(20, 90)
    alive = buffers(cut((0, rng.randrange(5, 30), 0, height), rng, 6), slack=9)
    found = place_groups([{i: 0} for i in alive], alive)
    assert not meet(alive, found.offsets)
    assert all(offset % ALIGNMENT == 0 for offset in found.offsets.values())
    assert found.least <= found.height
    assert found.height <= 1.02 * ALIGNMENT * height


@pytest.mark.parametrize("seed", range(8))
def test_groups_move_as_one(seed: int) -> None:
    """Two parts of a known layout in a group, which no other may cross."""
    rng = random.Random(seed)
    parts = cut((0, 17, 0, 60), rng, 5)
    alive, lows = buffers(parts, slack=0), [low for _, _, low, _ in parts]
    numbers = sorted(alive, key=lambda i: lows[i])
    pairs = [numbers[i : i + 2] for i in range(0, len(numbers), 2)]
    groups = [{i: ALIGNMENT * (lows[i] - lows[pair[0]]) for i in pair} for pair in pairs]
    found = place_groups(groups, alive)
    assert not meet(alive, found.offsets)
    for group in groups:
        (a, *_), *_ = [list(group)]
        assert all(found.offsets[i] - found.offsets[a] == offset - group[a] for i, offset in group.items())


def test_none_is_found_under_what_is_needed_at_once() -> None:
    shapes = [Footprint.of([(0, Buffer("a", 33, 0, 1))]), Footprint.of([(0, Buffer("b", 16, 1, 2))])]
    assert places_under(Conflicts(shapes), 3) is None
    assert sorted(places_under(Conflicts(shapes), 4) or ()) in ([0, 1], [0, 3])


def test_gaps_are_free_at_both_ends() -> None:
    assert gaps([(3, 5), (-2, 1), (4, 6)], 9) == [(1, 2), (6, 9)]
    assert gaps([(0, 12)], 9) == []
    assert gaps([], 4) == [(0, 4)]


def test_few_ways_are_enough_for_a_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ways are left out, the search may find less, but nothing that meets."""
    monkeypatch.setattr(fit, "KEPT_WAYS", 2)
    rng = random.Random(5)
    alive = buffers(cut((0, 25, 0, 70), rng, 7), slack=3)
    assert not meet(alive, place_groups([{i: 0} for i in alive], alive).offsets)


def test_only_what_is_lower_is_looked_for() -> None:
    alive = buffers(cut((0, 25, 0, 70), random.Random(1), 6), slack=0)
    first = place_groups([{i: 0} for i in alive], alive)
    assert place_groups([{i: 0} for i in alive], alive, below=first.height).height >= first.height
