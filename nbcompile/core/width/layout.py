"""Where the original's channels are in wide tensors, and those of every width in between: found by running both.

The network is run with tensors of its own sizes and of the widest, on ``meta``, and channels are followed through both
runs. A channel of the original is given, in order, a wide one of its block that is read by the same tensors: so halves
of a chunk stay in their halves. What a layer reads then says where its old inputs are among the wide ones.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nbcompile.core.copies import weightless
from nbcompile.core.example import Inputs, change_tensors
from nbcompile.core.width.follow import Follow, Readers
from nbcompile.core.width.labels import NO_CHANNEL, Slot
from nbcompile.core.width.rules import followed
from nbcompile.core.width.spaces import Space

Sizes = Mapping[Slot, int]


class NoLayoutError(Exception):
    """At these widths the network does not run, or reads other channels; ``slots`` are those that do."""

    def __init__(self, message: str, slots: Sequence[Slot] = ()) -> None:
        super().__init__(message)
        self.slots = tuple(slots)


@dataclass
class WidthLayout:
    """The channels of the widest network, and which of them each width has.

    Attributes:
        spaces: all of them.
        wide: by slot, the class of each position of the widest; 0 is fixed.
        unit: by class, in which step of its space it comes, from 0; -1 is the original's. Fixed ones have none.
        space: by class, the index of its space.
        own: by slot, where the original's positions are among the wide ones, in the original's order.
        grouped: of weights in groups, how many inputs and outputs a group has.
    """

    spaces: list[Space]
    wide: dict[Slot, list[int]]
    unit: dict[int, int]
    space: dict[int, int]
    own: dict[Slot, Tensor]
    grouped: Mapping[str, tuple[int, int]]

    def index(self, slot: Slot, steps: Sequence[int]) -> Tensor:
        """``(n,)``: the positions of ``slot`` at a width; ``steps`` has a number for every space."""
        if not any(steps):
            return self.own[slot]
        unit, space = self._comes[slot]
        return (unit < torch.tensor(steps)[space]).nonzero().flatten()

    @cached_property
    def _comes(self) -> dict[Slot, tuple[Tensor, Tensor]]:
        """By slot, of each position: in which step of which space it comes; a training draws a width in every step."""
        return {
            slot: (
                torch.tensor([self.unit.get(one, -1) for one in classes]),
                torch.tensor([self.space.get(one, 0) for one in classes]),
            )
            for slot, classes in self.wide.items()
        }


def sizes_at(follow: Follow, spaces: Sequence[Space], steps: Sequence[int]) -> Sizes:
    """How large each slot is at a width, by how much of each block it reads."""
    ratio: dict[int, tuple[int, int]] = {}
    sizes: dict[Slot, int] = {}
    for space, k in zip(spaces, steps, strict=True):
        for block in space.blocks:
            wide = block.size + k * (block.size // space.units)
            sizes[block.slot] = wide
            for root in follow.labels.roots(block.labels()):
                ratio.setdefault(root, (wide, block.size))
    for slot, labels in follow.read.items():
        counts: dict[tuple[int, int], int] = defaultdict(int)
        for root in follow.labels.roots(labels):
            counts[ratio.get(root, (1, 1))] += 1
        if any(n * wide % size for (wide, size), n in counts.items()):
            raise NoLayoutError(f"'{slot.tensor}' reads a part of the channels that is no whole number", [slot])
        sizes[slot] = sum(n * wide // size for (wide, size), n in counts.items())
    return sizes


def at_sizes(model: nn.Module, sizes: Sizes, grouped: Mapping[str, tuple[int, int]]) -> nn.Module:
    """A copy of ``model`` on ``meta``, with tensors of these sizes."""
    copy = weightless(model)
    shapes: dict[str, list[int]] = {}
    tensors = {
        **dict(copy.named_parameters(remove_duplicate=False)),
        **dict(copy.named_buffers(remove_duplicate=False)),
    }
    for slot, size in sizes.items():
        if slot.dim >= 0:
            shapes.setdefault(slot.tensor, list(tensors[slot.tensor].shape))[slot.dim] = size
    for name, shape in shapes.items():
        path, _, key = name.rpartition(".")
        old = tensors[name]
        if list(old.shape) != shape:
            new = torch.empty(shape, dtype=old.dtype, device="meta")
            module = copy.get_submodule(path)
            if isinstance(old, nn.Parameter):
                module._parameters[key] = nn.Parameter(new, old.requires_grad)
            else:
                module._buffers[key] = new
            set_attributes(module, key, tuple(shape), grouped.get(name))
    return copy


def set_attributes(module: Any, key: str, shape: tuple[int, ...], group: tuple[int, int] | None) -> None:
    """What ``module`` itself has to know of the shape of its weight: groups, and the shape that is normalised."""
    if key != "weight":
        return
    if group is not None and hasattr(module, "groups"):
        module.groups = shape[0] // group[1]
    if isinstance(getattr(module, "normalized_shape", None), tuple) and len(shape) == 1:
        module.normalized_shape = shape


def run_at(
    model: nn.Module, inputs: Inputs, base: Follow, spaces: Sequence[Space], steps: Sequence[int]
) -> tuple[Follow, Sizes]:
    """Follow the channels of ``model`` at a width.

    Raises:
        NoLayoutError: if it does not run there, or a tensor would need another size.
    """
    sizes = sizes_at(base, spaces, steps)
    try:
        seen = followed(at_sizes(model, sizes, base.grouped), without_values(inputs))
    except Exception as error:
        raise NoLayoutError(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error
    if seen.read.keys() != base.read.keys() or seen.labels.blocks.keys() != base.labels.blocks.keys():
        raise NoLayoutError("it runs other layers there", [*seen.read.keys() ^ base.read.keys()])
    wrong = [slot for slot, labels in seen.read.items() if len(labels) != sizes[slot]]
    if wrong:
        raise NoLayoutError(f"'{wrong[0].tensor}' reads another number of channels there", wrong)
    return seen, sizes


def without_values(inputs: Inputs) -> Inputs:
    """``inputs`` on ``meta``."""
    return change_tensors(lambda x: x.to("meta"), inputs)


def lay_out(model: nn.Module, inputs: Inputs, base: Follow, spaces: list[Space], steps: Sequence[int]) -> WidthLayout:
    """The layout of the widest network.

    Raises:
        NoLayoutError: if there is none.
    """
    seen, _ = run_at(model, inputs, base, spaces, steps)
    given, unit, space_of = _matched(base, seen, spaces, steps)
    wide = {slot: seen.labels.roots(labels) for slot, labels in _all_slots(seen)}
    own = {}
    for slot, labels in _all_slots(base):
        by_class: dict[int, list[int]] = defaultdict(list)
        for position, one in enumerate(wide[slot]):
            by_class[one].append(position)
        taken: dict[int, int] = defaultdict(int)
        positions = []
        for root in base.labels.roots(labels):
            one = given.get(root, NO_CHANNEL) if root != NO_CHANNEL else NO_CHANNEL
            if taken[one] >= len(by_class[one]):
                raise NoLayoutError(f"'{slot.tensor}' does not read there what it reads", [slot])
            positions.append(by_class[one][taken[one]])
            taken[one] += 1
        if positions != sorted(positions):
            raise NoLayoutError(f"'{slot.tensor}' reads channels in another order there", [slot])
        own[slot] = torch.tensor(positions, dtype=torch.int64)
    return WidthLayout(spaces, wide, unit, space_of, own, base.grouped)


def _all_slots(follow: Follow) -> Iterator[tuple[Slot, Tensor]]:
    yield from ((slot, block.labels()) for slot, block in follow.labels.blocks.items())
    yield from ((slot, labels) for slot, labels in follow.read.items() if slot not in follow.labels.blocks)


def _matched(
    base: Follow, seen: Follow, spaces: Sequence[Space], steps: Sequence[int]
) -> tuple[dict[int, int], dict[int, int], dict[int, int]]:
    """Which wide channel is which of the original's; the step in which each comes; its space."""
    old_readers, new_readers = base.readers(), seen.readers()
    given: dict[int, int] = {}
    unit: dict[int, int] = {}
    space_of: dict[int, int] = {}
    for number, space in enumerate(spaces):
        for block in space.blocks:
            wide = seen.labels.roots(seen.labels.blocks[block.slot].labels())
            waiting: dict[Readers, list[int]] = defaultdict(list)
            for one in dict.fromkeys(wide):
                space_of.setdefault(one, number)
                if one not in unit:
                    waiting[new_readers[one]].append(one)
            counts: dict[Readers, int] = defaultdict(int)
            for root in base.labels.roots(block.labels()):
                counts[old_readers[root]] += 1
                if root in given:
                    continue
                if not waiting[old_readers[root]]:
                    raise NoLayoutError(f"'{block.slot.tensor}' has other readers there", [block.slot])
                given[root] = one = waiting[old_readers[root]].pop(0)
                unit[one] = -1
            for readers, new in waiting.items():
                a_step = counts[readers] // space.units
                for n, one in enumerate(new):
                    if not a_step or n // a_step >= steps[number]:
                        raise NoLayoutError(f"'{block.slot.tensor}' has other readers there", [block.slot])
                    unit[one] = n // a_step
    return given, unit, space_of


def check_width(model: nn.Module, inputs: Inputs, base: Follow, layout: WidthLayout, steps: Sequence[int]) -> None:
    """Run the network at a width: it must read, position by position, what the layout says.

    Raises:
        NoLayoutError: naming a slot that does not.
    """
    seen, _ = run_at(model, inputs, base, layout.spaces, steps)
    is_class: dict[int, int] = {NO_CHANNEL: NO_CHANNEL}
    for slot, block in seen.labels.blocks.items():
        expected = [layout.wide[slot][p] for p in layout.index(slot, steps).tolist()]
        roots = seen.labels.roots(block.labels())
        if len(roots) != len(expected):
            raise NoLayoutError(f"'{slot.tensor}' has another number of channels", [slot])
        for root, one in zip(roots, expected, strict=True):
            if is_class.setdefault(root, one) != one:
                raise NoLayoutError(f"'{slot.tensor}' meets other channels at other widths", [slot])
    for slot, labels in seen.read.items():
        expected = [layout.wide[slot][p] for p in layout.index(slot, steps).tolist()]
        if [is_class.get(root, -1) for root in seen.labels.roots(labels)] != expected:
            raise NoLayoutError(f"'{slot.tensor}' reads other channels at other widths", [slot])
