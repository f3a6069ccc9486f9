"""Spaces of channels: what must be widened together, in which units, and why a space keeps its number."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from math import gcd

from torch import nn

from nbcompile.core.width.follow import Follow, Readers
from nbcompile.core.width.labels import NO_CHANNEL, Block, Slot


@dataclass
class Space:
    """Channels that are widened by one factor.

    Attributes:
        name: of the first tensor that writes it.
        blocks: what is born in it.
        units: how many steps the original's number of channels is: it grows by whole steps.
        inner: whether it is born and read within one block of the network (another of whose class it has).
        frozen: why it keeps its number; None where it can grow.
    """

    name: str
    blocks: list[Block] = field(default_factory=list)
    units: int = 1
    inner: bool = False
    frozen: str | None = None

    @property
    def channels(self) -> int:
        """Of its first block."""
        return self.blocks[0].size

    def steps(self, factor: float) -> int:
        """By how many units it grows at ``factor``, to the nearest."""
        return 0 if self.frozen else round((factor - 1) * self.units)


def spaces_of(follow: Follow, model: nn.Module) -> list[Space]:
    """All spaces of a run, in the order in which they are born."""
    labels = follow.labels
    home: dict[int, int] = {}  # the block that a root is in
    blocks = list(labels.blocks.values())
    together = list(range(len(blocks)))

    def find(i: int) -> int:
        while together[i] != i:
            i = together[i]
        return i

    def join(i: int, j: int) -> None:
        i, j = sorted((find(i), find(j)))
        together[j] = i

    for i, block in enumerate(blocks):
        for root in labels.roots(block.labels()):
            join(home.setdefault(root, i), i)
    quantum = dict.fromkeys(range(len(blocks)), 1)
    for name, (read, written) in follow.grouped.items():
        writer = next(i for i, block in enumerate(blocks) if block.slot == Slot(name, 0))
        quantum[writer] = written
        for root in set(labels.roots(follow.read[Slot(name, -1)])) - {NO_CHANNEL}:
            join(home[root], writer)
            quantum[home[root]] = read
    found: dict[int, Space] = {}
    readers = follow.readers()
    for i, block in enumerate(blocks):
        space = found.setdefault(find(i), Space(blocks[find(i)].slot.tensor))
        space.blocks.append(block)
        units = _units(follow, readers, block, quantum[i])
        space.units = gcd(space.units, units) if len(space.blocks) > 1 else units
        space.frozen = space.frozen or _why_frozen(follow, block, quantum[i])
    for name in follow.grouped:
        _freeze_fixed_groups(follow, name, found.values())
    for space in found.values():
        tensors = {
            slot.tensor for block in space.blocks for r in labels.roots(block.labels()) for slot, _ in readers[r]
        }
        space.inner = _in_one_block(model, tensors | {block.slot.tensor for block in space.blocks})
    return list(found.values())


def _freeze_fixed_groups(follow: Follow, name: str, spaces: Iterable[Space]) -> None:
    """A convolution in groups that reads channels without a number of their own."""
    if bool((follow.read[Slot(name, -1)] == NO_CHANNEL).any()):
        for space in spaces:
            if any(block.slot == Slot(name, 0) for block in space.blocks):
                space.frozen = space.frozen or f"'{name}' reads a fixed number of channels in groups"


def _units(follow: Follow, readers: Sequence[Readers], block: Block, quantum: int) -> int:
    """Steps of ``block``: whole groups, and of each part that goes its own way as many."""
    parts = Counter(readers[root] for root in follow.labels.roots(block.labels()))
    units = block.size // quantum
    for size in parts.values():
        units = gcd(units, size)
    return max(units, 1)


def _why_frozen(follow: Follow, block: Block, quantum: int) -> str | None:
    roots = follow.labels.roots(block.labels())
    for root in roots:
        if root in follow.labels.frozen:
            return follow.labels.frozen[root]
    if len(set(roots)) < len(roots):
        return f"two of the channels of '{block.slot.tensor}' are one further on"
    if block.size % quantum:
        return f"'{block.slot.tensor}' has {block.size} channels, which are no whole number of groups of {quantum}"
    return None


def _in_one_block(model: nn.Module, tensors: set[str]) -> bool:
    """Whether one module holds all of ``tensors`` whose class the network has several times."""
    shared = list(
        takewhile(lambda parts: len(set(parts)) == 1, zip(*(name.split(".")[:-1] for name in tensors), strict=False))
    )
    classes = Counter(type(m) for m in model.modules())
    for depth in range(len(shared), 0, -1):
        module = model.get_submodule(".".join(parts[0] for parts in shared[:depth]))
        plain = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        if not plain and any(True for _ in module.children()) and classes[type(module)] > 1:
            return True
    return False
