"""Layouts as JSON, for the record that a giant in width carries; runs of numbers in place of lists."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from nbcompile.core.errors import CheckpointError
from nbcompile.core.width.labels import Block, Slot
from nbcompile.core.width.layout import WidthLayout
from nbcompile.core.width.spaces import Space

_MOST = 2**22
"""Positions of all slots of a record together."""


def layout_to_json(layout: WidthLayout) -> dict[str, Any]:
    """What :func:`layout_from_json` reads."""
    classes = torch.unique(torch.cat([*layout.wide.values()]))
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
        "wide": [[*slot, _rising(held.tolist())] for slot, held in layout.wide.items()],
        "classes": _rising(classes.tolist()),
        "unit": _repeated(layout.unit[classes].tolist()),
        "space": _repeated(layout.space[classes].tolist()),
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
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"the record's widths are malformed: {type(error).__name__}: {error}") from None


def _layout(data: Mapping[str, Any]) -> WidthLayout:
    spaces = []
    for row in data["spaces"]:
        frozen = None if row["frozen"] is None else str(row["frozen"])
        blocks = [Block(Slot(str(name), int(dim)), 1, _positive(size)) for name, dim, size in row["blocks"]]
        if not blocks:
            raise ValueError("a group without channels")
        spaces.append(Space(str(row["name"]), blocks, _positive(row["units"]), bool(row["inner"]), frozen))
    if sum(_positive(count) for _, _, runs in data["wide"] for _, count in runs) > _MOST:
        raise ValueError(f"more than {_MOST:,} positions")
    wide: dict[Slot, Tensor] = {}
    for name, dim, runs in data["wide"]:
        wide[Slot(str(name), int(dim))] = torch.tensor(_unrolled(runs))
    classes = torch.tensor(_unrolled(data["classes"]))
    if int(classes.max()) > _MOST:
        raise ValueError(f"more than {_MOST:,} positions")
    if not torch.isin(torch.cat([*wide.values()]), classes).all():
        raise ValueError("a channel that is not listed")
    homes = torch.tensor(_unrepeated(data["space"], len(classes)))
    if bool(((homes < 0) | (homes >= len(spaces))).any()):
        raise ValueError("a channel in no group")
    unit, space = (torch.zeros(int(classes.max()) + 1, dtype=torch.int64) for _ in range(2))
    unit[classes], space[classes] = torch.tensor(_unrepeated(data["unit"], len(classes))), homes
    grouped = {str(name): (_positive(read), _positive(written)) for name, (read, written) in data["grouped"].items()}
    layout = WidthLayout(spaces, wide, unit, space, {}, grouped)
    layout.own.update(own_places(layout))
    return layout


def own_places(layout: WidthLayout) -> dict[Slot, Tensor]:
    """By slot, where the original's positions are: fixed ones, and those of its own channels."""
    return {slot: (layout.unit[classes] < 0).nonzero().flatten() for slot, classes in layout.wide.items()}


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
