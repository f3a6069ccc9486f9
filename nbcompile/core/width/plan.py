"""Which spaces are widened, by how much: proposed by the graph, proven by running; what cannot be proven is frozen."""

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from torch import nn

from nbcompile.core.copies import weightless
from nbcompile.core.example import Inputs
from nbcompile.core.progress import step
from nbcompile.core.width.follow import Follow
from nbcompile.core.width.layout import NoLayoutError, WidthLayout
from nbcompile.core.width.matching import lay_out
from nbcompile.core.width.rules import followed
from nbcompile.core.width.runs import check_width, run_at, without_values
from nbcompile.core.width.spaces import Space, spaces_of
from nbcompile.core.width.survey import Survey
from nbcompile.core.words import first_line

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
    base = _followed(model, inputs)
    plan = _Plan(model, inputs, base, spaces_of(base, model), widest)
    with step("looking which channels belong together"):
        while True:
            steps = plan.steps()
            try:
                return plan.proven(steps)
            except NoLayoutError as refusal:
                if not any(steps):
                    raise
                plan.freeze(refusal, steps)


def _followed(model: nn.Module, inputs: Inputs) -> Follow:
    """In eval mode; in both where other layers run in train mode, such as auxiliary heads."""
    inputs = without_values(inputs)
    try:
        base = followed(weightless(model), inputs)
    except Exception as error:
        raise NoLayoutError(f"it does not run without values: {first_line(error)}") from error
    if {name for name, _ in model.named_parameters()} <= {slot.tensor for slot in base.slots()}:
        return base
    with suppress(Exception):  # it may not run in train mode
        if followed(weightless(model), inputs, (True,)).slots() != base.slots():
            return followed(weightless(model), inputs, (False, True))
    return base


class _Plan:
    """Proposes, proves and freezes."""

    def __init__(
        self, model: nn.Module, inputs: Inputs, base: Follow, spaces: list[Space], widest: Callable[[Space], float]
    ) -> None:
        self.model, self.inputs, self.base, self.spaces, self.widest = model, inputs, base, spaces, widest

    def steps(self) -> list[int]:
        """By space, how much it grows at the widest."""
        return [space.steps(self.widest(space)) for space in self.spaces]

    def laid_out(self, steps: Sequence[int]) -> WidthLayout:
        """Where the original's channels are; not proven."""
        return lay_out(self.base, run_at(self.model, self.inputs, self.base, self.spaces, steps), self.spaces, steps)

    def proven(self, steps: Sequence[int]) -> WidthLayout:
        """The layout, which holds at the widest and at drawn widths."""
        layout = self.laid_out(steps)
        rng = random.Random(0)
        for _ in range(WIDTHS_TRIED if any(steps) else 0):
            drawn = [rng.randint(0, most) for most in steps]
            try:
                check_width(self.model, self.inputs, self.base, layout, drawn)
            except NoLayoutError as refusal:
                raise NoLayoutError(str(refusal), refusal.slots, drawn) from refusal
        return layout

    def freeze(self, refusal: NoLayoutError, steps: Sequence[int]) -> None:
        """Freeze what a survey blames; else what has a slot that the refusal names; else what does not go with others.

        Raises:
            NoLayoutError: if the network fails at its own width.
        """
        at = refusal.steps or steps
        blamed = self._surveyed(at) or self._named(refusal, at) or self._found(at, refusal)
        for number, why in blamed.items():
            self.spaces[number].frozen = f"at another width {why}"

    def _surveyed(self, steps: Sequence[int]) -> dict[int, str]:
        blamed: dict[int, str] = {}
        with suppress(NoLayoutError):
            look = partial(Survey, blamed, self.base, self.spaces, steps)
            run_at(self.model, self.inputs, self.base, self.spaces, steps, look)
        return blamed

    def _named(self, refusal: NoLayoutError, steps: Sequence[int]) -> dict[int, str]:
        number = {block.slot: n for n, space in enumerate(self.spaces) if steps[n] for block in space.blocks}
        found = {number[slot] for slot in refusal.slots if slot in number}
        for slot in refusal.slots:
            if slot in self.base.read:
                found |= {number[one] for one in self.base.labels.homes(self.base.read[slot]) if one in number}
        return dict.fromkeys(sorted(found), str(refusal))

    def _found(self, steps: Sequence[int], refusal: NoLayoutError) -> dict[int, str]:
        """Each that fails with those before that do not."""
        kept: set[int] = set()
        bad: dict[int, str] = {}

        def add(some: Sequence[int]) -> None:
            chosen = kept.union(some)
            try:
                self.laid_out([k if n in chosen else 0 for n, k in enumerate(steps)])
                kept.update(some)
            except NoLayoutError as why:
                if len(some) == 1:
                    bad[some[0]] = str(why)
                else:
                    add(some[: len(some) // 2])
                    add(some[len(some) // 2 :])

        add(free := [n for n, k in enumerate(steps) if k])
        return bad or dict.fromkeys(free, str(refusal))
