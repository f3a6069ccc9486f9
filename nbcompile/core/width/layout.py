"""What a width is: how large each tensor is there, and which channels of the widest network it has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nbcompile.core.copies import weightless
from nbcompile.core.example import Inputs, change_tensors
from nbcompile.core.width.follow import Follow
from nbcompile.core.width.labels import ATTRIBUTE, GROUPS, NO_CHANNEL, Slot
from nbcompile.core.width.numbers import set_numbers_
from nbcompile.core.width.rules import followed
from nbcompile.core.width.spaces import Space

Sizes = Mapping[Slot, int]


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


def sizes_at(follow: Follow, spaces: Sequence[Space], steps: Sequence[int]) -> Sizes:
    """How large each slot is at a width, by how much of each block it reads.

    Raises:
        NoLayoutError: naming those that would read no whole number.
    """
    grown = torch.zeros_like(follow.labels.root)  # by which of the ratios
    ratios: dict[tuple[int, int], int] = {(1, 1): 0}
    sizes: dict[Slot, int] = {}
    for space, k in zip(spaces, steps, strict=True):
        for block in space.blocks:
            sizes[block.slot] = wide = block.size + k * (block.size // space.units)
            grown[follow.labels.roots(block.labels())] = ratios.setdefault((wide, block.size), len(ratios))
    broken, by = [], list(ratios)
    for slot, labels in follow.read.items():
        counts = grown[follow.labels.roots(labels)].bincount().tolist()
        parts = [divmod(n * wide, size) for n, (wide, size) in zip(counts, by, strict=False) if n]
        sizes[slot] = sum(whole for whole, _ in parts)
        if any(rest for _, rest in parts):
            broken.append(slot)
    if broken:
        raise NoLayoutError(f"'{broken[0].tensor}' reads a part of the channels that is no whole number", broken)
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
    set_numbers_(copy, {slot.tensor: size for slot, size in sizes.items() if slot.dim == ATTRIBUTE})
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
    model: nn.Module,
    inputs: Inputs,
    base: Follow,
    spaces: Sequence[Space],
    steps: Sequence[int],
    look: Callable[..., Follow] = Follow,
) -> Follow:
    """Follow the channels of ``model`` at a width.

    Raises:
        NoLayoutError: if it does not run there, or a tensor would need another size.
    """
    sizes = sizes_at(base, spaces, steps)
    try:
        seen = followed(at_sizes(model, sizes, base.grouped), without_values(inputs), base.modes, look)
    except Exception as error:
        raise NoLayoutError(said(error)) from error
    if seen.read.keys() != base.read.keys() or seen.labels.blocks.keys() != base.labels.blocks.keys():
        raise NoLayoutError("it runs other layers there", [*seen.read.keys() ^ base.read.keys()])
    wrong = [slot for slot, labels in seen.read.items() if len(labels) != sizes[slot]]
    if wrong:
        raise NoLayoutError(f"'{wrong[0].tensor}' reads another number of channels there", wrong)
    return seen


def said(error: Exception) -> str:
    """Its kind and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def without_values(inputs: Inputs) -> Inputs:
    """``inputs`` on ``meta``."""
    return change_tensors(lambda x: x.to("meta"), inputs)


def check_width(model: nn.Module, inputs: Inputs, base: Follow, layout: WidthLayout, steps: Sequence[int]) -> None:
    """Run the network at a width: it must read, position by position, what the layout says.

    Raises:
        NoLayoutError: naming a slot that does not.
    """
    seen = run_at(model, inputs, base, layout.spaces, steps)
    of = torch.full((len(seen.labels.root),), -1, device="cpu")
    of[NO_CHANNEL] = NO_CHANNEL
    for slot, block in seen.labels.blocks.items():
        expected = layout.classes(slot, steps)
        roots = seen.labels.roots(block.labels())
        if len(roots) != len(expected):
            raise NoLayoutError(f"'{slot.tensor}' has another number of channels", [slot])
        of[roots] = torch.where(of[roots] < 0, expected, of[roots])
        if not torch.equal(of[roots], expected):
            raise NoLayoutError(f"'{slot.tensor}' meets other channels at other widths", [slot])
    for slot, labels in seen.read.items():
        expected = layout.classes(slot, steps)
        if not torch.equal(of[seen.labels.roots(labels)], expected):
            raise NoLayoutError(f"'{slot.tensor}' reads other channels at other widths", [slot])
    check_groups(layout, steps)


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
