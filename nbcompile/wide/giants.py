"""Giants: networks that are larger while they train, in depth or in width, and can be brought back."""

from typing import cast

from torch import nn

from nbcompile.core.blocks import sites
from nbcompile.core.copies import working_copy
from nbcompile.core.cost import Cost, cost
from nbcompile.core.errors import PreconditionError, UsageError
from nbcompile.core.example import ExampleInput
from nbcompile.core.serialization.stand_in import StandIn
from nbcompile.core.words import class_of
from nbcompile.wide.slices import width_on
from nbcompile.wide.widths import Widths, giant_in_width, widths_of


def is_giant(model: nn.Module) -> bool:
    """Whether ``model`` has expansion blocks, or is wider than the network that it stands for."""
    return bool(sites(model)) or widths_of(model) is not None


def refuse_wide(model: nn.Module, who: str, advice: str) -> None:
    """Check that ``model`` is no giant in width.

    Raises:
        PreconditionError: if it is, with ``advice``.
    """
    if widths_of(model) is not None:
        raise PreconditionError(f"{who}: {class_of(model)} is a giant in width: {advice}")


def giant_cost(model: nn.Module, example_input: ExampleInput | None = None) -> Cost | None:
    """What ``model`` costs where it is largest: with its blocks, at its widest.

    None for a giant in width that was read without its code, if what was read of it runs at its own width alone.
    """
    if widths_of(model) is None:
        return cost(model, example_input)
    model = working_copy(model)
    giant, widths = cast(tuple[nn.Module, Widths], giant_in_width(model))
    is_graph = isinstance(giant, StandIn)
    if is_graph and widths.layout.numbers(widths.steps):
        return None
    try:
        with width_on(giant, widths, widths.widest()):
            return cost(model, example_input)
    except UsageError:
        if is_graph:
            return None
        raise
