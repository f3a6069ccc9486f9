"""Labels of channels: a union-find over channels, not over tensors, so that concatenations and shuffles keep positions.

A *block* is the channels that one tensor of weights makes: the outputs of a convolution, say. Each of them has a label
of its own, a positive integer; 0 is what is no channel, or keeps its number. Channels that must be one and the same
(they are added, or a norm has one number for both) *meet*.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

NO_CHANNEL = 0


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
        frozen: why a channel keeps its number, by the root of its label.
    """

    def __init__(self) -> None:
        self.blocks: dict[Slot, Block] = {}
        self.frozen: dict[int, str] = {}
        self.parent = [NO_CHANNEL]

    def born(self, slot: Slot, size: int) -> Block:
        """The block of ``slot``; the same one for whoever asks again."""
        if slot not in self.blocks:
            self.blocks[slot] = Block(slot, len(self.parent), size)
            self.parent.extend(range(len(self.parent), len(self.parent) + size))
        return self.blocks[slot]

    def root(self, label: int) -> int:
        """The label that stands for all that met."""
        while self.parent[label] != label:
            self.parent[label] = label = self.parent[self.parent[label]]
        return label

    def roots(self, labels: Tensor) -> list[int]:
        """Of each of ``labels``, flattened."""
        return [self.root(label) for label in labels.flatten().tolist()]

    def meet(self, a: Tensor, b: Tensor, why: str) -> None:
        """Each channel of ``a`` is that of ``b`` at its place; what meets a fixed one is frozen, because of ``why``."""
        shape = (a + b).shape
        a, b = a.expand(shape), b.expand(shape)
        for one, other in set(zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)):
            one, other = self.root(one), self.root(other)
            if one == other:
                continue
            if NO_CHANNEL in (one, other):
                self.frozen.setdefault(max(one, other), why)
                continue
            low, high = sorted((one, other))
            self.parent[high] = low
            if reason := self.frozen.pop(high, None):
                self.frozen.setdefault(low, reason)

    def freeze(self, labels: Tensor, why: str) -> None:
        """They keep their number, because of ``why``."""
        self.meet(labels, torch.zeros(1, dtype=torch.int64, device="cpu"), why)
