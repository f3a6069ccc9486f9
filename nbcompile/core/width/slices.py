"""Wide tensors of which a network sees a part: its own, or that of another width.

Every widened parameter is parametrized (``torch.nn.utils.parametrize``): whoever reads it gets the part that the width
now has. So the network's own code runs at every width. Running statistics of norms are not shared: the original's stay
what and where they are, the wide ones are buffers beside them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from math import sqrt
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nbcompile.core.copies import working_copy
from nbcompile.core.errors import UsageError
from nbcompile.core.width.labels import Slot
from nbcompile.core.width.layout import WidthLayout, set_attributes
from nbcompile.core.width.numbers import set_numbers_

_ATTRIBUTE = "_nbcompile_width"
_WIDE = "wide_{}"


class WidthPart(nn.Module):
    """Gives the part of a wide tensor that a width has.

    Attributes:
        places: by dimension, the positions that are given, in ascending order; a number is that many from the first on,
            which needs no copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[int, int | Tensor] = {}

    def forward(self, wide: Tensor) -> Tensor:
        """The part."""
        requires_grad = wide.requires_grad
        for dim, places in self.places.items():
            wide = wide.narrow(dim, 0, places) if isinstance(places, int) else wide.index_select(dim, places)
        part = wide.contiguous()  # a linear layer of another stride rounds otherwise,
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            part.requires_grad_(requires_grad)  # and one that asks for no gradient, even where there are none
        return part

    def turn_to(self, places: dict[int, Tensor], device: torch.device) -> None:
        """Give the part at ``places`` from now on."""
        self.places = {
            dim: len(at) if torch.equal(at, torch.arange(len(at))) else at.to(device) for dim, at in places.items()
        }


class Widths:
    """What a giant in width remembers: its layout, its factors, and the width that is on."""

    def __init__(self, layout: WidthLayout, factors: Sequence[float], inner: Sequence[float]) -> None:
        self.layout, self.factors, self.inner = layout, tuple(factors), tuple(inner)
        self.steps = [0] * len(layout.spaces)

    def choices(self, number: int) -> tuple[float, ...]:
        """The factors of a space; 1 alone where it is frozen."""
        space = self.layout.spaces[number]
        return (1.0,) if space.frozen else self.inner if space.inner else self.factors

    @cached_property
    def slots(self) -> dict[str, list[Slot]]:
        """By tensor that is wider than the original's, its dimensions that are."""
        found: dict[str, list[Slot]] = {}
        for slot, places in self.layout.own.items():
            if slot.dim >= 0 and len(self.layout.wide[slot]) > len(places):
                found.setdefault(slot.tensor, []).append(slot)
        return found


def widths_of(model: nn.Module) -> Widths | None:
    """What ``model`` remembers, or None where it is no giant in width."""
    return getattr(model, _ATTRIBUTE, None)


def widen_(model: nn.Module, widths: Widths, generator: torch.Generator) -> None:
    """Make the tensors of ``model`` wide: new outputs random, new inputs 0, so that its function stays."""
    for name, slots in widths.slots.items():
        path, _, key = name.rpartition(".")
        module, old = model.get_submodule(path), cast(Tensor, model.get_submodule(path)._parameters.get(key))
        places = {slot.dim: widths.layout.own[slot] for slot in slots}
        sizes = {slot.dim: len(widths.layout.wide[slot]) for slot in slots}
        if key in module._buffers:
            buffer = cast(Tensor, module._buffers[key])
            wide = buffer.new_full((sizes[0],), 1.0 if key.endswith("var") else 0.0)
            module.register_buffer(_WIDE.format(key), wide.index_copy(0, places[0], buffer))
            continue
        made = _grown(old.detach(), places, sizes, _born(widths, name), generator)
        module._parameters[key] = nn.Parameter(made, old.requires_grad)
        part = WidthPart()
        part.turn_to(places, made.device)
        parametrize.register_parametrization(module, key, part, unsafe=True)
    object.__setattr__(model, _ATTRIBUTE, widths)


def _born(widths: Widths, name: str) -> int | None:
    """The dimension in which ``name`` writes channels, if it is a weight."""
    return next((s.dim for space in widths.layout.spaces for b in space.blocks if (s := b.slot).tensor == name), None)


def _grown(
    old: Tensor, places: dict[int, Tensor], sizes: dict[int, int], born: int | None, generator: torch.Generator
) -> Tensor:
    """``old`` within a tensor of ``sizes``: random in new outputs, 0 from new inputs to old outputs."""
    shape = [sizes.get(d, n) for d, n in enumerate(old.shape)]
    index = [places.get(d, torch.arange(n)) for d, n in enumerate(old.shape)]
    if born is None or old.ndim < 2:
        made = old.new_full(shape, float(old.mean()) if old.numel() else 0.0)
    else:
        fan = max(1, torch.Size(shape).numel() // max(shape[born], 1))
        made = torch.empty(shape).uniform_(-1 / sqrt(fan), 1 / sqrt(fan), generator=generator).to(old)
        made.index_fill_(born, index[born].to(old.device), 0.0)
    made[torch.meshgrid(*(i.to(old.device) for i in index), indexing="ij")] = old
    return made


@contextmanager
def width_on(model: nn.Module, steps: Sequence[int]) -> Iterator[None]:
    """Inside, ``model`` has the width at which its spaces grow by ``steps``; it must have its own before."""
    widths = cast(Widths, widths_of(model))
    if any(widths.steps):
        raise UsageError("at_width: the network is at another width; leave that first")
    _switch(model, widths, steps)
    try:
        yield
    finally:
        _switch(model, widths, [0] * len(steps))


def _switch(model: nn.Module, widths: Widths, steps: Sequence[int]) -> None:
    layout = widths.layout
    for name, slots in widths.slots.items():
        path, _, key = name.rpartition(".")
        module = model.get_submodule(path)
        places = {slot.dim: layout.index(slot, steps) for slot in slots}
        if key in module._buffers:
            _switch_buffer(module, key, layout.index(slots[0], widths.steps), places[0], any(widths.steps), any(steps))
            continue
        wide = cast(Tensor, cast(Any, module).parametrizations[key].original)
        cast(Any, module).parametrizations[key][0].turn_to(places, wide.device)
        shape = list(wide.shape)
        for dim, at in places.items():
            shape[dim] = len(at)
        set_attributes(module, key, tuple(shape), layout.grouped.get(name))
    set_numbers_(model, layout.numbers(steps))
    widths.steps = list(steps)


def _switch_buffer(module: nn.Module, key: str, now: Tensor, then: Tensor, was: bool, will: bool) -> None:
    """The original's statistics wait as ``own_...`` while the wide ones are on."""
    wide = cast(Tensor, module._buffers[_WIDE.format(key)])
    kept = cast(Any, module).__dict__
    if was:
        wide.index_copy_(0, now.to(wide.device), cast(Tensor, module._buffers[key]).to(wide.dtype))
        module._buffers[key] = kept.pop(f"_own_{key}")
    if will:
        kept[f"_own_{key}"] = module._buffers[key]
        module._buffers[key] = wide.index_select(0, then.to(wide.device))


def narrowed(model: nn.Module) -> nn.Module:
    """A copy of a giant in width with the original's tensors alone: its class, keys and shapes."""
    widths = cast(Widths, widths_of(model))
    if any(widths.steps):
        raise UsageError("fuse: the network is at another width: leave at_width first")
    tiny = working_copy(model)
    for name in widths.slots:
        path, _, key = name.rpartition(".")
        module = cast(Any, tiny.get_submodule(path))
        if key in module._buffers:
            del module._buffers[_WIDE.format(key)]
            continue
        own, wide = getattr(module, key), module.parametrizations[key].original
        if len(module.parametrizations) == 1:  # torch's own way would take the copy's class from the giant, too
            del module._modules["parametrizations"]
            module.__class__ = type(module).__bases__[0]
        else:
            del module.parametrizations[key]
        module._parameters[key] = nn.Parameter(own.detach().clone(), wide.requires_grad)
    object.__delattr__(tiny, _ATTRIBUTE)
    return tiny
