"""``widen``: the user's network as a part of wider ones that share its weights; ``at_width`` runs those."""

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from nbcompile.checkpoint import description_of
from nbcompile.core.blocks import sites
from nbcompile.core.copies import working_copy
from nbcompile.core.errors import PreconditionError, UsageError
from nbcompile.core.example import ExampleInput, Origin, inputs_for, origin_of, remember, specs
from nbcompile.core.progress import step
from nbcompile.core.running import eval_mode
from nbcompile.core.serialization.stand_in import StandIn
from nbcompile.core.width.factors import check_factors
from nbcompile.core.width.layout import NoLayoutError
from nbcompile.core.width.plan import planned
from nbcompile.core.wrappers import require_loaded, require_names, unwrap
from nbcompile.wide.slices import narrowed, widen_, width_on
from nbcompile.wide.widths import Widths, giant_in_width, widths_of

log = logging.getLogger("nbcompile")


@step("widening")
def widen(
    model: nn.Module,
    example_input: ExampleInput | None = None,
    factors: Sequence[float] = (1, 1.8, 2.6),
    inner: Sequence[float] = (1, 1.6, 2.2, 2.8),
    *,
    seed: int = 0,
    shared_statistics: bool = False,
) -> nn.Module:
    """A giant in width: a copy of ``model`` whose tensors are parts of wider ones, at the model's own width.

    Which channels belong together is found by following them through a run; what cannot be widened keeps its number.
    The giant is what the model is, to the bit, and its parameters are the wide ones: train it at several widths
    (:func:`at_width`), and ``fuse`` gives the original back.

    Args:
        model: any module; it is not changed. Wrappers (DDP, ``torch.compile``) are seen through.
        example_input: as of :func:`nbcompile.expand`.
        factors: widths, over the original's, of channels that several blocks share; 1 is among them.
        inner: of channels that are born and read within one block of the network.
        seed: of the new weights. From the original's outputs on, they are multiplied by 0: its function stays.
        shared_statistics: whether running statistics of norms are those of all widths, as in NetAug's own code: then
            they are to be estimated anew before the giant is evaluated (``torch.optim.swa_utils.update_bn``). By
            default the original's are its own.

    Returns:
        The giant: of the model's class (a subclass, where the model itself holds a parameter that grows), in the same
        mode, with the same outputs.

    Raises:
        PreconditionError: if nothing can be widened, saying why, or the network cannot be followed.
        UsageError: if the factors do not fit.

    Source: NetAug (arXiv 2110.08890) sec. 3.2 for widths and factors; the layout, its proof and the kept statistics
    are ours.
    """
    model = unwrap(model)
    require_names(model, "widen")
    require_loaded(model, "widen")
    if widths_of(model) is not None:
        raise UsageError("widen: the network is a giant in width already")
    inputs = inputs_for(model, example_input, who="widen")
    factors, inner = check_factors("factors", factors), check_factors("inner", inner)
    giant = working_copy(model, tensors=False)
    looked = working_copy(giant)
    try:
        with eval_mode(looked):
            layout = planned(looked, inputs, lambda space: max(inner if space.inner else factors))
    except NoLayoutError as error:
        raise PreconditionError(f"widen: the channels of {type(model).__name__} cannot be followed: {error}") from error
    widths = Widths(layout, factors, inner, shared=shared_statistics)
    if not widths.slots:
        why = dict.fromkeys(f"'{space.name}': {space.frozen}" for space in layout.spaces if space.frozen)
        why |= dict.fromkeys(_tied(model) if why else ())
        if any(space.frozen is None for space in layout.spaces):
            why = {"no factor makes a group of channels a whole step wider": None}
        said = "; ".join(why) or "it has no layers"
        raise PreconditionError(f"widen: nothing of {type(model).__name__} can be widened: {said}")
    origin = origin_of(model)
    widths.description = None if sites(model) else description_of(model, inputs, proof=False)
    widen_(giant, widths, torch.Generator().manual_seed(seed))
    remember(giant, Origin(specs(inputs), origin.model if origin else None, origin.preprocessing if origin else {}))
    frozen = [space for space in layout.spaces if space.frozen]
    log.info("widen: %d of %d groups of channels can grow", len(layout.spaces) - len(frozen), len(layout.spaces))
    return giant


def _tied(model: nn.Module) -> list[str]:
    """Parameters that have another name, too: what follows the one does not see the other."""
    first: dict[int, str] = {}
    pairs = [(name, first.setdefault(id(x), name)) for name, x in model.named_parameters(remove_duplicate=False)]
    return [
        f"'{name}' is '{known}', too, and layers that share weights keep their width"
        for name, known in pairs
        if known != name
    ][:1]


@contextmanager
def at_width(
    giant: nn.Module, width: str | Mapping[str, float] = "random", *, rng: random.Random | None = None
) -> Iterator[None]:
    """Inside, ``giant`` is the network of another width; behind it, the original's again.

    Args:
        giant: of :func:`widen`; wrappers are seen through.
        width: ``random`` draws a factor for every group of channels, ``random-inner`` for those alone that are born
            and read within one block, ``widest`` takes the largest; or factors by the names that
            :func:`width_groups` gives, the others at 1.
        rng: draws; Python's own by default. In distributed training all processes must draw the same.

    Running statistics of norms are the wide networks' own inside. A backward pass that computes activations anew
    (checkpointing) belongs inside, too.

    Raises:
        UsageError: if it is no giant in width, it is at another width, or a name or a factor is none of its own.
    """
    giant = unwrap(giant)
    found = giant_in_width(giant)
    if found is None:
        raise UsageError(f"at_width: {type(giant).__name__} is no giant in width; make one with widen")
    inside, widths = found
    steps = _steps(widths, width, rng or cast(random.Random, random))
    if any(steps) and isinstance(inside, StandIn):
        raise UsageError(
            "at_width: this giant was read without its code, and stands at its own width alone; give the network: "
            "load(path, model=...)"
        )
    with width_on(inside, widths, steps):
        yield


def width_groups(giant: nn.Module) -> dict[str, dict[str, Any]]:
    """The groups of channels of a giant in width, by the tensor that writes the first of each.

    Returns:
        ``channels`` of the original, ``inner``, the ``factors`` that are drawn from, and why it keeps its number
        (``frozen``, None where it can grow).
    """
    widths = widths_of(unwrap(giant))
    if widths is None:
        raise UsageError(f"width_groups: {type(giant).__name__} is no giant in width; make one with widen")
    return {
        space.name: {
            "channels": space.channels, "inner": space.inner, "factors": widths.choices(n), "frozen": space.frozen
        }
        for n, space in enumerate(widths.layout.spaces)
    }  # fmt: skip


def _steps(widths: Widths, width: str | Mapping[str, float], rng: random.Random) -> list[int]:
    spaces = widths.layout.spaces
    if isinstance(width, str):
        choose = {
            "random": lambda n: rng.choice(widths.choices(n)),
            "random-inner": lambda n: rng.choice(widths.choices(n)) if spaces[n].inner else 1.0,
            "widest": lambda n: max(widths.choices(n)),
            "own": lambda n: 1.0,
        }.get(width)
        if choose is None:
            raise UsageError(f"at_width: '{width}' is no width; random, random-inner, widest, own, or factors by group")
        return [spaces[n].steps(choose(n)) for n in range(len(spaces))]
    by_name = {space.name: n for n, space in enumerate(spaces)}
    for name, factor in width.items():
        if name not in by_name:
            raise UsageError(f"at_width: '{name}' is no group of channels; width_groups(giant) lists them")
        most = max(widths.choices(by_name[name]))
        if not 1 <= factor <= most:
            raise UsageError(f"at_width: '{name}' goes from 1 to {most:g}, not to {factor:g}")
    return [space.steps(width.get(space.name, 1.0)) for space in spaces]


def describe_again(giant: nn.Module) -> None:
    """Let the record of a giant in width describe the network as it is now, with what it remembers."""
    widths = widths_of(giant)
    assert widths is not None
    if widths.description is not None:
        widths.describe(description_of(narrowed(giant), None))
