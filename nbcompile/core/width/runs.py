"""A network at a width, run on ``meta``: with what sizes, and whether it reads there what a layout says."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from nbcompile.core.copies import weightless
from nbcompile.core.example import Inputs, change_tensors
from nbcompile.core.width.follow import Follow
from nbcompile.core.width.labels import ATTRIBUTE, NO_CHANNEL, Slot
from nbcompile.core.width.layout import NoLayoutError, WidthLayout, check_groups, set_attributes
from nbcompile.core.width.numbers import set_numbers_
from nbcompile.core.width.rules import followed
from nbcompile.core.width.spaces import Space
from nbcompile.core.words import first_line

Sizes = Mapping[Slot, int]


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
        raise NoLayoutError(first_line(error)) from error
    if seen.read.keys() != base.read.keys() or seen.labels.blocks.keys() != base.labels.blocks.keys():
        raise NoLayoutError("it runs other layers there", [*seen.read.keys() ^ base.read.keys()])
    wrong = [slot for slot, labels in seen.read.items() if len(labels) != sizes[slot]]
    if wrong:
        raise NoLayoutError(f"'{wrong[0].tensor}' reads another number of channels there", wrong)
    return seen


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
