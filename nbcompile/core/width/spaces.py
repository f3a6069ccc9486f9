"""Spaces of channels: what must be widened together, in which units, and why a space keeps its number."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from math import gcd, lcm

import torch
from torch import Tensor, nn

from nbcompile.core.width.follow import Follow
from nbcompile.core.width.labels import GROUPS, NO_CHANNEL, Block, Slot, counted, distinct


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
    blocks, kinds, frozen = list(follow.labels.blocks.values()), follow.kinds({}), follow.labels.frozen()
    together, quantum = _joined(follow, blocks)
    found: dict[int, Space] = {}
    for block, first, whole in zip(blocks, together, quantum, strict=True):
        space = found.setdefault(first, Space(blocks[first].slot.tensor))
        space.blocks.append(block)
        roots = follow.labels.roots(block.labels())
        space.units = gcd(space.units, _units(roots, kinds, block.size // whole))
        if len(space.blocks) == 1:
            space.units = _units(roots, kinds, block.size // whole)
        space.frozen = space.frozen or _why_frozen(frozen, block, roots, whole)
    for name in follow.grouped:
        _freeze_fixed_groups(follow, name, found.values())
    reads, classes = _readers(follow), Counter(type(module) for module in model.modules())
    for space in found.values():
        held = distinct(torch.cat([follow.labels.roots(block.labels()) for block in space.blocks])).tolist()
        tensors = {b.slot.tensor for b in space.blocks}.union(*(reads[root] for root in held))
        space.inner = _in_one_block(model, classes, tensors)
    return list(found.values())


def _joined(follow: Follow, blocks: list[Block]) -> tuple[list[int], list[int]]:
    """By block, the first of those that are widened with it, and how many channels a whole number of groups is."""
    labels, number = follow.labels, {block.slot: i for i, block in enumerate(blocks)}
    together, quantum = list(range(len(blocks))), [1] * len(blocks)
    home = torch.full((len(labels.root),), -1)  # the first block that a root is in

    def find(i: int) -> int:
        while together[i] != i:
            i = together[i]
        return i

    def join(i: int, j: int) -> None:
        i, j = sorted((find(i), find(j)))
        together[j] = i

    for i, block in enumerate(blocks):
        roots = labels.roots(block.labels())
        for j in distinct(home[roots]).tolist():
            join(i, j if j >= 0 else i)
        home[roots[home[roots] < 0]] = i
    for name, (read, written) in follow.grouped.items():
        writer = number[Slot(name, 0)]
        quantum[writer] = lcm(quantum[writer], written)
        roots = labels.roots(follow.read[Slot(name, GROUPS)])
        for i in distinct(home[roots[roots != NO_CHANNEL]]).tolist():
            join(i, writer)
            quantum[i] = lcm(quantum[i], read)
    return [find(i) for i in range(len(blocks))], quantum


def _freeze_fixed_groups(follow: Follow, name: str, spaces: Iterable[Space]) -> None:
    """A convolution in groups that reads channels without a number of their own."""
    if bool((follow.labels.roots(follow.read[Slot(name, GROUPS)]) == NO_CHANNEL).any()):
        for space in spaces:
            if any(block.slot == Slot(name, 0) for block in space.blocks):
                space.frozen = space.frozen or f"'{name}' reads a fixed number of channels in groups"


def _units(roots: Tensor, kinds: Tensor, units: int) -> int:
    """Steps of a block of so many groups: of each part that goes its own way as many."""
    return max(1, gcd(units, *counted(kinds[distinct(roots)])[1].tolist()))


def _why_frozen(frozen: dict[int, str], block: Block, roots: Tensor, quantum: int) -> str | None:
    for root in roots.tolist() if frozen else ():
        if root in frozen:
            return frozen[root]
    if not in_order(roots):
        return f"two of the channels of '{block.slot.tensor}' are one further on"
    if block.size % quantum:
        return f"'{block.slot.tensor}' has {block.size} channels, which are no whole number of groups of {quantum}"
    return None


def occurrence(roots: Tensor) -> Tensor:
    """``(n,)``: how often the same stands before each."""
    of, order = roots.sort(stable=True)
    place = torch.arange(len(of), device="cpu")
    first = torch.where(of == of.roll(1), 0, place).cummax(0)[0] if len(of) else place
    return torch.empty_like(of).index_copy_(0, order, place - first)


def in_order(roots: Tensor) -> bool:
    """Whether what stands there several times does so in the same order: as both halves of a gate do."""
    times = occurrence(roots)
    first = roots[times == 0]
    again = [roots[times == n] for n in range(1, int(times.max()) + 1)] if len(roots) > len(first) else []
    return all(torch.equal(first[torch.isin(first, some)], some) for some in again)


def _readers(follow: Follow) -> list[set[str]]:
    """By root, the names of the tensors that read it."""
    by_root: list[set[str]] = [set() for _ in follow.labels.root]
    for slot, labels in follow.read.items():
        for root in distinct(follow.labels.roots(labels)).tolist():
            by_root[root].add(slot.tensor)
    return by_root


def _in_one_block(model: nn.Module, classes: Mapping[type, int], tensors: set[str]) -> bool:
    """Whether one module holds all of ``tensors`` whose class the network has several times."""
    shared = list(
        takewhile(lambda parts: len(set(parts)) == 1, zip(*(name.split(".")[:-1] for name in tensors), strict=False))
    )
    for depth in range(len(shared), 0, -1):
        module = model.get_submodule(".".join(parts[0] for parts in shared[:depth]))
        plain = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        if not plain and any(True for _ in module.children()) and classes[type(module)] > 1:
            return True
    return False
