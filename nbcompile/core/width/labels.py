"""Labels of channels: a union-find over channels, not over tensors, so that concatenations and shuffles keep positions.

A *block* is the channels that one tensor of weights makes: the outputs of a convolution, say. Each of them has a label
of its own, a positive integer; 0 is what is no channel, or keeps its number. Channels that must be one and the same
(they are added, or a norm has one number for both) *meet*.
"""

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

NO_CHANNEL = 0

GROUPS = -1
"""In a slot: no dimension of the tensor, but what the groups of a convolution read."""

ATTRIBUTE = -2
"""In a slot: no tensor, but a number that a module keeps, and at which it cuts channels off."""


class Slot(NamedTuple):
    """A dimension of a parameter or buffer, by the name of its tensor."""

    tensor: str
    dim: int


@dataclass(frozen=True)
class Block:
    """The channels that are born in one slot.

    Attributes:
        slot: where they are written.
        first: the label of the first of them.
        size: how many they are.
    """

    slot: Slot
    first: int
    size: int

    def labels(self) -> Tensor:
        """``(size,)``, int64."""
        return torch.arange(self.first, self.first + self.size, device="cpu")


class Labels:
    """Who is who among the channels.

    Attributes:
        blocks: in the order in which they were born, by their slots.
        root: ``(n,)``, by label, the one that stands for all that met.
    """

    def __init__(self) -> None:
        self.blocks: dict[Slot, Block] = {}
        self.root = torch.zeros(1, dtype=torch.int64, device="cpu")
        self._fixed: list[tuple[Tensor, str]] = []

    def born(self, slot: Slot, size: int) -> Block:
        """The block of ``slot``; the same one for whoever asks again."""
        if slot not in self.blocks:
            self.blocks[slot] = block = Block(slot, len(self.root), size)
            self.root = torch.cat([self.root, block.labels()])
        return self.blocks[slot]

    def roots(self, labels: Tensor) -> Tensor:
        """Of each of ``labels``, in their shape."""
        return self.root[labels]

    def homes(self, labels: Tensor) -> set[Slot]:
        """The slots of which a block holds the roots of ``labels``."""
        blocks = list(self.blocks.values())
        first = torch.tensor([block.first for block in blocks], device="cpu")
        roots = distinct(self.roots(labels))
        at = torch.searchsorted(first, roots[roots != NO_CHANNEL], right=True) - 1
        return {blocks[i].slot for i in set(at.tolist())}

    def meet(self, a: Tensor, b: Tensor, why: str) -> None:
        """Each channel of ``a`` is that of ``b`` at its place; what meets a fixed one is frozen, because of ``why``."""
        shape = (a + b).shape
        one, other = (self.roots(x.expand(shape)) for x in (a, b))
        low, high = torch.minimum(one, other), torch.maximum(one, other)
        if bool((fixed := (low == NO_CHANNEL) & (high != NO_CHANNEL)).any()):
            self._fixed.append((distinct(high[fixed]), why))
        pairs = torch.stack([low, high])[:, (low != NO_CHANNEL) & (low != high)]
        while pairs.numel():
            self.root.scatter_reduce_(0, pairs[1], pairs[0], "amin")
            while not torch.equal(further := self.root[self.root], self.root):
                self.root = further
            pairs = self.root[pairs].sort(0)[0]
            pairs = pairs[:, pairs[0] != pairs[1]]

    def freeze(self, labels: Tensor, why: str) -> None:
        """They keep their number, because of ``why``."""
        self.meet(labels, torch.zeros(1, dtype=torch.int64, device="cpu"), why)

    def frozen(self) -> dict[int, str]:
        """Why a channel keeps its number, by root: the first reason that there was."""
        found: dict[int, str] = {}
        for labels, why in self._fixed:
            for root in self.roots(labels).tolist():
                found.setdefault(root, why)
        return found


def distinct(numbers: Tensor) -> Tensor:
    """Each once, in ascending order."""
    return cast(Tensor, torch.unique(numbers))


def counted(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Each once, and how often it is there."""
    once, times = torch.unique(numbers, return_counts=True)
    return once, times
