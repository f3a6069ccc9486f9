"""What a width is: how large each tensor is there, and which channels of the widest network it has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nbcompile.core.width.labels import ATTRIBUTE, GROUPS, Slot
from nbcompile.core.width.spaces import Space


class NoLayoutError(Exception):
    """At a width, ``steps``, the network does not run, or reads other channels; ``slots`` are those that do."""

    def __init__(self, message: str, slots: Sequence[Slot] = (), steps: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.slots, self.steps = tuple(slots), tuple(steps)


@dataclass
class WidthLayout:
    """The channels of the widest network, and which of them each width has.

    Attributes:
        spaces: all of them.
        wide: by slot, the class of each position of the widest; 0 is fixed.
        unit: by class, in which step of its space it comes, from 0; below 0 it is the original's, or fixed.
        space: by class, the index of its space.
        own: by slot, where the original's positions are among the wide ones, in the original's order.
        grouped: of weights in groups, how many inputs and outputs a group has.
    """

    spaces: list[Space]
    wide: dict[Slot, Tensor]
    unit: Tensor
    space: Tensor
    own: dict[Slot, Tensor]
    grouped: Mapping[str, tuple[int, int]]

    def index(self, slot: Slot, steps: Sequence[int]) -> Tensor:
        """``(n,)``: the positions of ``slot`` at a width; ``steps`` has a number for every space."""
        if not any(steps):
            return self.own[slot]
        unit, space = self._comes[slot]
        return (unit < torch.tensor(steps)[space]).nonzero().flatten()

    def numbers(self, steps: Sequence[int]) -> dict[str, int]:
        """What numbers that modules keep are at a width, by their names."""
        return {slot.tensor: len(self.index(slot, steps)) for slot in self.wide if slot.dim == ATTRIBUTE}

    def classes(self, slot: Slot, steps: Sequence[int]) -> Tensor:
        """``(n,)``: of each of those positions."""
        return self.wide[slot][self.index(slot, steps)]

    @cached_property
    def _comes(self) -> dict[Slot, tuple[Tensor, Tensor]]:
        """By slot, of each position: in which step of which space it comes; a training draws a width in every step."""
        return {slot: (self.unit[classes], self.space[classes]) for slot, classes in self.wide.items()}


def set_attributes(module: Any, key: str, shape: tuple[int, ...], group: tuple[int, int] | None) -> None:
    """What ``module`` itself has to know of the shape of its weight: groups, and the shape that is normalised."""
    if key != "weight":
        return
    if group is not None and hasattr(module, "groups"):
        module.groups = shape[0] // group[1]
    if isinstance(getattr(module, "normalized_shape", None), tuple) and len(shape) == 1:
        module.normalized_shape = shape


def check_groups(layout: WidthLayout, steps: Sequence[int]) -> None:
    """At a width, the outputs of a group are made of what they are made of at the widest.

    Raises:
        NoLayoutError: naming a slot of which that is not so.
    """
    for name, (read, written) in layout.grouped.items():
        slots = Slot(name, GROUPS), Slot(name, 0)
        if any(len(layout.index(s, steps)) % n for s, n in zip(slots, (read, written), strict=True)):
            raise NoLayoutError(f"'{name}' would read or write a part of a group", slots)
        reads, writes = (layout.index(s, steps).view(-1, n) for s, n in zip(slots, (read, written), strict=True))
        places = (torch.arange(n, device="cpu") for n in (read, written))
        of = [at - n for at, n in zip((reads, writes), places, strict=True)]
        if len(reads) != len(writes) or not torch.equal(of[0] * written, (of[1] * read)[:, :1].expand_as(of[0])):
            raise NoLayoutError(f"'{name}' has other groups at other widths", slots)
        if not torch.equal(of[1], of[1][:, :1].expand_as(of[1])):
            raise NoLayoutError(f"'{name}' has other groups at other widths", slots)
