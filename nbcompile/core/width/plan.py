"""Which spaces are widened, by how much: proposed by the graph, proven by running; what cannot be proven is frozen."""

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from math import gcd

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
from nbcompile.core.width.survey import Blamed, Survey
from nbcompile.core.words import first_line

WIDTHS_TRIED = 4
"""Widths at which a layout is checked, besides the widest and the original's."""

WIDTHS_OF_PARTS = 16
"""As many where channels are cut in parts: where that fits at one width in two, few widths may not show it."""

_CUTS = {"chunk", "split", "tensor_split", "split_with_sizes", "narrow", "getitem", "glu", "unbind"}


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
                plan.mend(refusal, steps)


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
    """Proposes, proves, joins and freezes."""

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
        cuts = any(getattr(function, "__name__", "").strip("_") in _CUTS for function, _ in self.base.calls)
        for _ in range((WIDTHS_OF_PARTS if cuts else WIDTHS_TRIED) if any(steps) else 0):
            drawn = [rng.randint(0, most) for most in steps]
            try:
                check_width(self.model, self.inputs, self.base, layout, drawn)
            except NoLayoutError as refusal:
                raise NoLayoutError(str(refusal), refusal.slots, drawn) from refusal
        return layout

    def mend(self, refusal: NoLayoutError, steps: Sequence[int]) -> None:
        """Let spaces that fail with each other grow as one; what fails so, too, or by itself, keeps its number.

        Those that fail are whom a survey blames; else who has a slot that the refusal names; else who does not go with
        others.
        """
        at = refusal.steps or steps
        blamed = self._surveyed(at) or self._named(refusal, at) or self._found(at, refusal)
        if not self._joined([numbers for numbers, _ in blamed]):
            for numbers, why in blamed:
                for number in numbers:
                    self.spaces[number].frozen = self.spaces[number].frozen or f"at another width {why}"

    def _joined(self, sets: Sequence[set[int]]) -> bool:
        """Join all spaces that are in a set together; whether some were."""
        groups: list[set[int]] = []
        spaces = self.spaces
        for numbers in sets:
            if len(numbers) > 1:
                apart = [group for group in groups if group.isdisjoint(numbers)]
                groups = [*apart, numbers.union(*(group for group in groups if group not in apart))]
        for group in groups:
            first, *others = some = [spaces[number] for number in sorted(group)]
            first.blocks = sorted((block for space in some for block in space.blocks), key=lambda block: block.first)
            first.units, first.inner = gcd(*(space.units for space in some)), all(space.inner for space in some)
            self.spaces = [space for space in self.spaces if all(space is not other for other in others)]
        return bool(groups)

    def _surveyed(self, steps: Sequence[int]) -> Blamed:
        blamed: Blamed = []
        with suppress(NoLayoutError):
            look = partial(Survey, blamed, self.base, self.spaces, steps)
            run_at(self.model, self.inputs, self.base, self.spaces, steps, look)
        return blamed

    def _named(self, refusal: NoLayoutError, steps: Sequence[int]) -> Blamed:
        number = {block.slot: n for n, space in enumerate(self.spaces) if steps[n] for block in space.blocks}
        blamed = []
        for slot in refusal.slots:
            homes = self.base.labels.homes(self.base.read[slot]) if slot in self.base.read else set()
            blamed.append(({number[one] for one in (slot, *homes) if one in number}, str(refusal)))
        return [(numbers, why) for numbers, why in blamed if numbers]

    def _found(self, steps: Sequence[int], refusal: NoLayoutError) -> Blamed:
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
        return [({n}, why) for n, why in bad.items()] or [({n}, str(refusal)) for n in free]
