"""Regions in strips: equal to the bit in both interpreters, at the places that were planned."""

import random
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nbcompile.core.errors import CheckpointError, ExportError, PreconditionError
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.options import Limits
from nbcompile.exporters.to_tflite.memory import arrange as arranging
from nbcompile.exporters.to_tflite.memory import overlaps, windows
from nbcompile.exporters.to_tflite.memory.arrange import arrange, arranged, prove_equal
from nbcompile.exporters.to_tflite.memory.draft import Draft
from nbcompile.exporters.to_tflite.memory.emit import emit
from nbcompile.exporters.to_tflite.memory.order import reordered
from nbcompile.exporters.to_tflite.memory.search import Way, _most_held, ways
from nbcompile.exporters.to_tflite.memory.strips import Region, RowChain, chain, in_strips, one_in_strips
from nbcompile.exporters.to_tflite.memory.windows import stages
from nbcompile.exporters.to_tflite.run.drawn import drawn as drawn_inputs
from nbcompile.exporters.to_tflite.run.interpreters import run_file
from tests.exporters.to_tflite.memory.random_chains import chain_file
from tests.exporters.to_tflite.networks_tflite import branches
from tests.exporters.to_tflite.small_tflite import converted
from tests.slow import one_in


def regions_of(content: bytes) -> list[Region]:
    """All that there are, in two strips."""
    file = read_file(content)
    draft, known = Draft.of(file), stages(file)
    pairs = ((a, b) for a in range(len(file.ops)) for b in range(a + 1, len(file.ops) + 1))
    found = ((a, b, chain(draft, known, a, b)) for a, b in pairs)
    return [Region(a, b, 2) for a, b, one in found if one and file.tensors[one.out].shape[1] > 1]


def drawn(content: bytes, rng: random.Random) -> tuple[Region, ...]:
    """One region or two that do not overlap, in random numbers of strips."""
    file, found = read_file(content), regions_of(content)
    taken: list[Region] = []
    for region in rng.sample(found, min(len(found), 6)):
        if len(taken) < 2 and all(region.last <= r.first or r.last <= region.first for r in taken):
            rows = file.tensors[file.ops[region.last - 1].outputs[0]].shape[1]
            taken.append(region._replace(strips=rng.randint(2, rows)))
    return tuple(sorted(taken))


def wrong(seed: int, tries: int) -> list[str]:
    """What is wrong with the file of number ``seed``."""
    content, rng = chain_file(seed), random.Random(seed)
    found = []
    for _ in range(tries):
        regions = drawn(content, rng)
        if not regions:
            return found
        made = arranged(content, read_file(content), Way(regions, 0, 0, 0, 0))
        try:
            prove_equal(content, made.content)
        except ExportError as error:
            found.append(f"{seed} {regions}: {error}")
        if made.arena.planned != made.arena.head:
            found.append(f"{seed} {regions}: {made.arena.planned} bytes planned, {made.arena.head} taken")
    return found


@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 120), marks=pytest.mark.slow)], ids=["1", "120"])
def test_random_files_in_strips(seeds: range) -> None:
    assert [one for seed in seeds for one in wrong(seed, 2)] == []


def test_a_float_file_in_strips() -> None:
    content = chain_file(0, int8=False)
    made = arranged(content, read_file(content), Way(drawn(content, random.Random(0)), 0, 0, 0, 0))
    prove_equal(content, made.content)


def test_where_strips_would_change_the_outputs_there_are_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    content = chain_file(1)
    proved = arranging.prove_equal

    def strict(before: bytes, after: bytes, known: Any = ()) -> None:
        if len(read_file(after).ops) != len(read_file(before).ops):
            raise ExportError("they differ")
        proved(before, after, known)

    monkeypatch.setattr(arranging, "_chosen", lambda found, limits, made: made(found[-1]))
    assert arrange(content, Limits()).way.regions != ()
    monkeypatch.setattr(arranging, "prove_equal", strict)
    assert arrange(content, Limits(least_sram=True)).way.regions == ()
    assert "nothing is computed in strips: they differ" in caplog.text


def test_a_file_with_everything_has_regions() -> None:
    names = {op.name for seed in range(2) for op in read_file(chain_file(seed)).ops}
    assert {"CONV_2D", "ADD"} <= names
    assert any(region.last - region.first > 4 for seed in range(2) for region in regions_of(chain_file(seed)))


@pytest.mark.parametrize("fault", one_in(3, ["overlap", "kept rows", "padding"]))
def test_faults_are_seen(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    if fault == "kept rows":
        monkeypatch.setattr(windows.RowWindow, "begin", lambda self, low: low * self.stride)
    if fault == "padding":
        monkeypatch.setattr(windows.RowWindow, "end", lambda self, high: (high - 1) * self.stride + self.rows)
    if fault == "overlap":
        monkeypatch.setattr(overlaps, "sound", lambda *_: True)
    assert any(is_seen(seed) for seed in range(2))


def is_seen(seed: int) -> bool:
    """Whether something is wrong, or cannot be written at all."""
    try:
        return bool(wrong(seed, 3))
    except (ExportError, PreconditionError, ValueError):
        return True


def test_what_cannot_be_in_strips() -> None:
    content = chain_file(1)
    file = read_file(content)
    with pytest.raises(PreconditionError, match=rf"^operators 0 to {len(file.ops) - 1} cannot be computed in strips$"):
        in_strips(Draft.of(file), stages(file), [Region(0, len(file.ops), 2)])
    first = regions_of(content)[0]
    rows = file.tensors[file.ops[first.last - 1].outputs[0]].shape[1]
    with pytest.raises(PreconditionError, match=rf"^{rows + 1} strips of {rows} rows: take fewer$"):
        in_strips(Draft.of(file), stages(file), [first._replace(strips=rows + 1)])


def test_ways_need_less_and_less() -> None:
    for seed in range(2):
        file = read_file(chain_file(seed))
        found = ways(file)
        assert found[0].regions == ()
        assert [way.peak for way in found] == sorted({way.peak for way in found}, reverse=True)
        made = arranged(chain_file(seed), file, found[-1])
        assert made.arena.head <= 1.25 * found[-1].peak + 64


def test_arranged_by_limits() -> None:
    content = chain_file(1)
    free, least = arrange(content, Limits()), arrange(content, Limits(least_sram=True))
    assert least.needed <= free.needed
    assert free.way.work <= 0.01 * free.way.macs
    some = arrange(content, Limits(sram=free.needed))
    assert some.needed <= free.needed
    assert arrange(content, Limits(sram=16)).needed <= free.needed  # the least; the caller refuses it


def test_an_order_that_needs_less() -> None:
    """The wide branch first: its result is small while the other one runs."""
    content = converted(branches, (1, 15, 10, 3))
    file = read_file(content)
    draft = Draft.of(file)

    def most(one: Draft) -> int:
        alive = one.lifetimes().values()
        return max(sum(b.nbytes for b in alive if b.at(step)) for step in range(len(one.steps)))

    turned = Draft(file, draft.steps)
    best = reordered(turned)
    assert most(best) <= most(draft)
    prove_equal(content, emit(content, best))


def test_a_changed_output_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = chain_file(0)

    def shifted(content: bytes, samples: Any, **options: Any) -> Any:
        found = run_file(content, samples, **options)
        return [(one[0] + len(calls),) for one in found] if calls.append(1) is None else found

    calls: list[int] = []
    monkeypatch.setattr(arranging, "run_file", shifted)
    sentence = "arranging its memory changed the outputs in micro; please report this network"
    with pytest.raises(ExportError, match=f"^{re.escape(sentence)}$"):
        prove_equal(content, content)


def test_the_plan_is_read_back() -> None:
    content = chain_file(1)
    file = read_file(content)
    assert file.plan == ()
    numbers = list(Draft.of(file).lifetimes())
    planned = emit(content, Draft.of(file), {number: 16 * i for i, number in enumerate(numbers)})
    found = read_file(planned)
    assert sorted(offset for offset in found.plan if offset >= 0) == [16 * i for i in range(len(numbers))]
    assert read_file(emit(planned, Draft.of(found), {})).plan == (-1,) * len(found.tensors)
    damaged = planned.replace(np.array([1, 0, len(found.tensors)], np.int32).tobytes(), b"")
    with pytest.raises(CheckpointError):
        read_file(damaged)
    samples, unplanned = drawn_inputs(file, 2), emit(content, Draft.of(file), {})
    ours, theirs = (run_file(one, samples, raw=True) for one in (content, unplanned))
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(ours, theirs, strict=True))


def held_at_once(draft: Draft, found: RowChain, stays: bool) -> int:
    """Step by step, tensor by tensor."""
    alive = draft.lifetimes()
    if stays:
        alive[found.source] = replace(alive[found.source], last=len(draft.steps))
    outer: dict[int, int] = {}
    for wish in overlaps.wishes(draft, alive):
        outer.setdefault(wish.inner, wish.outer)
    touched = {n for step in draft.steps for n in draft.activations((*step.inputs, *step.outputs))}

    def around(number: int, seen: tuple[int, ...] = ()) -> tuple[int, ...]:
        out = outer.get(number, -1)
        return seen if out < 0 or out in seen else around(out, (*seen, out))

    def counts(number: int, step: int) -> bool:
        return alive[number].at(step) and not any(alive[n].at(step) for n in around(number))

    return max(sum(alive[n].nbytes for n in touched if counts(n, step)) for step in range(len(draft.steps)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_is_held_at_once_is_counted_right(seed: int) -> None:
    file = read_file(chain_file(seed))
    before, known = Draft.of(file), stages(file)
    for first, last, _ in regions_of(chain_file(seed)):
        found = chain(before, known, first, last)
        assert found is not None
        for count in (2, 3):
            if count <= before.tensor(found.out).shape[1]:
                draft = one_in_strips(before, found, count)
                for stays in (False, True):
                    assert _most_held(draft, found, stays) == held_at_once(draft, found, stays)
