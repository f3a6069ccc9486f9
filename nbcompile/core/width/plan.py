"""Which spaces are widened, by how much: proposed by the graph, proven by running; what cannot be proven is frozen."""

import random
from collections.abc import Callable, Sequence

from torch import nn

from nbcompile.core.copies import weightless
from nbcompile.core.example import Inputs
from nbcompile.core.progress import step
from nbcompile.core.width.follow import Follow
from nbcompile.core.width.labels import NO_CHANNEL
from nbcompile.core.width.layout import NoLayoutError, WidthLayout, check_width, lay_out, without_values
from nbcompile.core.width.rules import followed
from nbcompile.core.width.spaces import Space, spaces_of

WIDTHS_TRIED = 4
"""Widths at which a layout is checked, besides the widest and the original's."""


def planned(model: nn.Module, inputs: Inputs, widest: Callable[[Space], float]) -> WidthLayout:
    """The layout of ``model`` at its widest.

    Args:
        model: is left as it is, and followed on ``meta``.
        inputs: of ``forward``.
        widest: the factor of a space.

    Raises:
        NoLayoutError: if the network does not run on ``meta``.
    """
    try:
        base = followed(weightless(model), without_values(inputs))
    except Exception as error:
        raise NoLayoutError(f"it does not run without values: {type(error).__name__}: {error}") from error
    spaces = spaces_of(base, model)
    with step("looking which channels belong together"):
        while True:
            steps = [space.steps(widest(space)) for space in spaces]
            try:
                return _proven(model, inputs, base, spaces, steps)
            except NoLayoutError as refusal:
                _freeze(model, inputs, base, spaces, steps, refusal)


def _proven(
    model: nn.Module, inputs: Inputs, base: Follow, spaces: list[Space], steps: Sequence[int], draws: int = WIDTHS_TRIED
) -> WidthLayout:
    layout = lay_out(model, inputs, base, spaces, steps)
    rng = random.Random(0)
    for _ in range(draws if any(steps) else 0):
        check_width(model, inputs, base, layout, [rng.randint(0, most) for most in steps])
    return layout


def _freeze(
    model: nn.Module, inputs: Inputs, base: Follow, spaces: list[Space], steps: Sequence[int], refusal: NoLayoutError
) -> None:
    """Freeze what fails by itself; else what the refusal names; else each that fails with those before; else all.

    Raises:
        NoLayoutError: if the network fails at its own width.
    """

    def fails(chosen: set[int]) -> NoLayoutError | None:
        try:
            _proven(model, inputs, base, spaces, [k if n in chosen else 0 for n, k in enumerate(steps)], draws=1)
        except NoLayoutError as why:
            return why
        return None

    free = [n for n, k in enumerate(steps) if k]
    if not free:
        raise refusal
    alone = {n: why for n in free if (why := fails({n})) is not None}
    if not alone:
        named = {n for n in free for slot in refusal.slots if _touches(base, spaces[n], slot)}
        alone = dict.fromkeys(named, refusal) or _first_that_does_not_go(free, fails) or dict.fromkeys(free, refusal)
    for n, why in alone.items():
        spaces[n].frozen = f"at another width {why}"


def _first_that_does_not_go(
    free: Sequence[int], fails: Callable[[set[int]], NoLayoutError | None]
) -> dict[int, NoLayoutError]:
    kept: set[int] = set()
    bad: dict[int, NoLayoutError] = {}
    for n in free:
        if (why := fails(kept | {n})) is None:
            kept.add(n)
        else:
            bad[n] = why
    return bad


def _touches(base: Follow, space: Space, slot: object) -> bool:
    """Whether ``slot`` writes or reads channels of ``space``."""
    own = {root for block in space.blocks for root in base.labels.roots(block.labels())} - {NO_CHANNEL}
    if any(block.slot == slot for block in space.blocks):
        return True
    return any(at == slot and own & set(base.labels.roots(labels)) for at, labels in base.read.items())
