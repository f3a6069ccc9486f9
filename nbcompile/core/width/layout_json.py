"""Layouts as JSON, for the record that a giant in width carries; runs of numbers in place of lists."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch

from nbcompile.core.errors import CheckpointError
from nbcompile.core.width.labels import Block, Slot
from nbcompile.core.width.layout import WidthLayout
from nbcompile.core.width.spaces import Space

_MOST = 2**24
"""Positions of all slots of a record together."""


def layout_to_json(layout: WidthLayout) -> dict[str, Any]:
    """What :func:`layout_from_json` reads."""
    classes = sorted(layout.space)
    return {
        "spaces": [
            {
                "name": space.name,
                "blocks": [[*block.slot, block.size] for block in space.blocks],
                "units": space.units,
                "inner": space.inner,
                "frozen": space.frozen,
            }
            for space in layout.spaces
        ],
        "wide": [[*slot, _rising(classes)] for slot, classes in layout.wide.items()],
        "classes": _rising(classes),
        "unit": _repeated(layout.unit.get(one, -1) for one in classes),
        "space": _repeated(layout.space[one] for one in classes),
        "grouped": {name: list(pair) for name, pair in layout.grouped.items()},
    }


def layout_from_json(data: Mapping[str, Any]) -> WidthLayout:
    """The inverse of :func:`layout_to_json`.

    Raises:
        CheckpointError: if it is malformed.
    """
    try:
        return _layout(data)
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(f"the record's widths are malformed: {type(error).__name__}: {error}") from None


def _layout(data: Mapping[str, Any]) -> WidthLayout:
    spaces = []
    for row in data["spaces"]:
        frozen = None if row["frozen"] is None else str(row["frozen"])
        blocks = [Block(Slot(str(name), int(dim)), 1, _positive(size)) for name, dim, size in row["blocks"]]
        if not blocks:
            raise ValueError("a group without channels")
        spaces.append(Space(str(row["name"]), blocks, _positive(row["units"]), bool(row["inner"]), frozen))
    classes = _unrolled(data["classes"])
    units, homes = _unrepeated(data["unit"], len(classes)), _unrepeated(data["space"], len(classes))
    if any(not 0 <= home < len(spaces) for home in homes) or any(unit < -1 for unit in units):
        raise ValueError("a channel in no group")
    unit, space = dict(zip(classes, units, strict=True)), dict(zip(classes, homes, strict=True))
    wide: dict[Slot, list[int]] = {}
    for name, dim, runs in data["wide"]:
        wide[Slot(str(name), int(dim))] = _unrolled(runs)
    if sum(map(len, wide.values())) > _MOST:
        raise ValueError(f"more than {_MOST:,} positions")
    grouped = {str(name): (_positive(read), _positive(written)) for name, (read, written) in data["grouped"].items()}
    layout = WidthLayout(spaces, wide, unit, space, {}, grouped)
    layout.own.update(own_places(layout))
    return layout


def own_places(layout: WidthLayout) -> dict[Slot, torch.Tensor]:
    """By slot, where the original's positions are: fixed ones, and those of its own channels."""
    return {
        slot: torch.tensor([n for n, one in enumerate(classes) if layout.unit.get(one, -1) < 0], dtype=torch.int64)
        for slot, classes in layout.wide.items()
    }


def _rising(numbers: Iterable[int]) -> list[list[int]]:
    """``[first, count]`` of each stretch of equal numbers (0, which is no channel) or of such that rise by one."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == (runs[-1][0] + runs[-1][1] if runs[-1][0] else 0):
            runs[-1][1] += 1
        else:
            runs.append([number, 1])
    return runs


def _unrolled(runs: Sequence[Sequence[int]]) -> list[int]:
    if sum(_positive(count) for _, count in runs) > _MOST:
        raise ValueError(f"more than {_MOST:,} positions")
    return [first + n if first else 0 for first, count in runs for n in range(count)]


def _repeated(numbers: Iterable[int]) -> list[list[int]]:
    """``[number, count]`` of each stretch of equal ones."""
    return [[number, len([*same])] for number, same in groupby(numbers)]


def _unrepeated(runs: Sequence[Sequence[int]], count: int) -> list[int]:
    if sum(_positive(times) for _, times in runs) != count:
        raise ValueError("not one number for each channel")
    return [int(number) for number, times in runs for _ in range(times)]


def _positive(value: Any) -> int:
    if type(value) is not int or not 0 < value <= _MOST:
        raise ValueError(f"{str(value)[:40]} is no number of channels")
    return value
