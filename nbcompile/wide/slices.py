"""Wide tensors of which a network sees a part: its own, or that of another width.

Every widened parameter is parametrized (``torch.nn.utils.parametrize``): whoever reads it gets the part that the width
now has. So the network's own code runs at every width. Running statistics of norms are not shared: the original's stay
what and where they are, the wide ones are buffers beside them.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from math import sqrt
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from nbcompile.core.copies import copied, working_copy
from nbcompile.core.errors import CheckpointError, UsageError
from nbcompile.core.width.layout import WidthLayout, set_attributes
from nbcompile.core.width.numbers import set_numbers_
from nbcompile.wide.layout_json import own_places
from nbcompile.wide.widths import RecordingPart, WidthPart, Widths, giant_in_width, widths_of

_WIDE = "wide_{}"


def widen_(
    model: nn.Module, widths: Widths, generator: torch.Generator, given: Mapping[str, Tensor] | None = None
) -> None:
    """Make the tensors of ``model`` wide.

    Args:
        model: with the original's tensors.
        widths: what it is to remember.
        generator: of new outputs; new inputs are 0, so that the function stays.
        given: the wide tensors, in place of new ones, by the names of the original's; of buffers by their own.

    Raises:
        CheckpointError: if one that is given does not fit.
    """
    for name, slots in widths.slots.items():
        path, _, key = name.rpartition(".")
        module = model.get_submodule(path)
        widths.orders.setdefault(path, tuple(module._parameters))
        if key in module._buffers:
            old = cast(Tensor, module._buffers[key])
            shape = (len(widths.layout.wide[slots[0]]),)
            if given is not None:
                made = _given(given, f"{path}.{_WIDE.format(key)}".lstrip("."), shape, old)
            else:
                made = old.new_full(shape, 1.0 if key.endswith("var") else 0.0)
                made.index_copy_(0, widths.layout.own[slots[0]].to(old.device), old)
            module.register_buffer(_WIDE.format(key), made)
            continue
        parameter = cast(Tensor, module._parameters[key])
        places = {slot.dim: widths.layout.own[slot] for slot in slots}
        sizes = {slot.dim: len(widths.layout.wide[slot]) for slot in slots}
        if given is not None:
            made = _given(given, name, tuple(sizes.get(d, n) for d, n in enumerate(parameter.shape)), parameter)
        else:
            made = _grown(parameter.detach(), places, sizes, _born(widths, name), generator)
        module._parameters[key] = nn.Parameter(made, parameter.requires_grad)
        if not widths.carrier:
            widths.carrier = f"{path}.parametrizations.{key}.0".lstrip(".")
        first = widths.carrier == f"{path}.parametrizations.{key}.0".lstrip(".")
        part = (RecordingPart if first else WidthPart)(widths, name)
        parametrize.register_parametrization(module, key, part, unsafe=True)


def _given(given: Mapping[str, Tensor], name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    value = given.get(name)
    if value is None or value.shape != shape:
        has = "nothing" if value is None else f"shape {tuple(value.shape)}"
        raise CheckpointError(f"the wide '{name}' needs shape {shape}; the file has {has}")
    return value.detach().to(like).clone()


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
def width_on(model: nn.Module, widths: Widths, steps: Sequence[int]) -> Iterator[None]:
    """Inside, the giant ``model`` has the width at which its groups grow by ``steps``; it must have its own before.

    What ``torch.compile`` made of it runs as Python there: each width would be compiled anew.
    """
    if any(widths.steps):
        raise UsageError("at_width: the network is at another width; leave that first")
    compiled = "torch._dynamo" in sys.modules and any(steps)  # a second to import; without it nothing is compiled
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        _switch(model, widths, steps)
        try:
            yield
        finally:
            _switch(model, widths, [0] * len(steps))


def _switch(model: nn.Module, widths: Widths, steps: Sequence[int]) -> None:
    before, was, will = widths.shown, any(widths.steps), any(steps)
    widths.turn_to(steps)
    for name, shown in widths.shown.items():
        path, _, key = name.rpartition(".")
        module = model.get_submodule(path)
        if key in module._buffers:
            own = _index(widths.own[name][0], module._buffers[_WIDE.format(key)]) if widths.shared else None
            _switch_buffer(module, key, before[name][0] if was else None, shown[0] if will else None, own)
            continue
        shape = list(cast(Tensor, cast(Any, module).parametrizations[key].original).shape)
        for dim, at in shown.items():
            shape[dim] = at if isinstance(at, int) else len(at)
        set_attributes(module, key, tuple(shape), widths.layout.grouped.get(name))
    set_numbers_(model, widths.layout.numbers(steps))


def _switch_buffer(
    module: nn.Module, key: str, now: int | Tensor | None, then: int | Tensor | None, own: Tensor | None
) -> None:
    """The original's statistics wait as ``_own_...`` while wide ones are on: now those at ``now``, then at ``then``.

    Where all widths share them, those at ``own`` are the original's.
    """
    wide = cast(Tensor, module._buffers[_WIDE.format(key)])
    kept = cast(Any, module).__dict__
    if now is not None:
        wide.index_copy_(0, _index(now, wide), cast(Tensor, module._buffers[key]).to(wide.dtype))
        module._buffers[key] = kept.pop(f"_own_{key}")
        if own is not None:
            cast(Tensor, module._buffers[key]).copy_(wide.index_select(0, own))
    if then is not None:
        if own is not None:
            wide.index_copy_(0, own, cast(Tensor, module._buffers[key]).to(wide.dtype))
        kept[f"_own_{key}"] = module._buffers[key]
        module._buffers[key] = wide.index_select(0, _index(then, wide))


def _index(places: int | Tensor, of: Tensor | None) -> Tensor:
    assert of is not None
    return torch.arange(places, device=of.device) if isinstance(places, int) else places.to(of.device)


def move_own_(model: nn.Module, widths: Widths, unit: Tensor) -> None:
    """Let the original be other channels of the wide tensors, at its own width; running statistics go with them.

    Args:
        model: the giant.
        widths: what it remembers.
        unit: in which step each channel comes, as of :class:`WidthLayout`.
    """
    old = widths.layout
    new = WidthLayout(old.spaces, old.wide, unit.clone(), old.space, {}, old.grouped)
    new.own.update(own_places(new))
    for name, slots in widths.slots.items():
        path, _, key = name.rpartition(".")
        module = model.get_submodule(path)
        if key in module._buffers:
            own, wide = cast(Tensor, module._buffers[key]), cast(Tensor, module._buffers[_WIDE.format(key)])
            whole = wide.index_copy(0, old.own[slots[0]].to(wide.device), own.to(wide.dtype))
            own.copy_(whole.index_select(0, new.own[slots[0]].to(wide.device)))
    widths.turn_to(widths.steps, new)


def narrowed(model: nn.Module) -> nn.Module:
    """A copy of a giant in width, or of what has one inside, with the original's tensors alone."""
    widths = widths_of(model)
    if widths is not None and any(widths.steps):
        raise UsageError("the network is at another width: leave at_width first")
    return at_its_width(model)


def at_its_width(model: nn.Module) -> nn.Module:
    """A copy of what is or has a giant in width, with tensors of the width that is on, and no others."""
    whole = working_copy(model)
    giant, widths = cast(tuple[nn.Module, Widths], giant_in_width(whole))
    for name in widths.slots:
        path, _, key = name.rpartition(".")
        module = cast(Any, giant.get_submodule(path))
        if key in module._buffers:
            del module._buffers[_WIDE.format(key)]
            module.__dict__.pop(f"_own_{key}", None)
            continue
        own, wide = getattr(module, key), module.parametrizations[key].original
        if len(module.parametrizations) == 1:  # torch's own way would take the copy's class from the giant, too
            del module._modules["parametrizations"]
            module.__class__ = type(module).__bases__[0]
        else:
            del module.parametrizations[key]
        module._parameters[key] = nn.Parameter(own.detach().clone(), wide.requires_grad)
    for path, names in widths.orders.items():
        parameters = giant.get_submodule(path)._parameters
        for key in names:
            parameters[key] = parameters.pop(key)
    return copied(whole) if isinstance(whole, fx.GraphModule) else whole  # its code is in its class: it gets its own
