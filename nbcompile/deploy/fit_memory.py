"""Make a network fit a microcontroller's memory: which pairs of layers to compute in parts, and in how many.

Cost of computing a pair in ``n`` parts: its input is read ``n - 1`` times more, and the parts' results are read and
written once more to be concatenated. These bytes are what the search keeps least; multiply-accumulates do not change.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import fx
from torch.fx._lazy_graph_module import _LazyGraphModule

from nbcompile.core.errors import ExportError
from nbcompile.core.example import Inputs
from nbcompile.core.graph.nodes import downstream
from nbcompile.core.graph.shapes import Shapes
from nbcompile.core.layers import LayerSpec
from nbcompile.core.memory.lifetimes import Lifetimes
from nbcompile.core.progress import step
from nbcompile.passes.split_channels import SplitChannels, Splittable, splittable

ArenaOf = Callable[[fx.GraphModule], int]
"""Bytes of memory that the file of a graph needs."""

COUNTS = (1, 2, 4, 8)
"""Numbers of parts that are tried."""


@dataclass(frozen=True)
class Split:
    """One way to compute the network.

    Attributes:
        parts: qualified name of the first layer of a pair, to its number of parts.
        modelled: bytes that its values need by our model, which leaves out what interpreters keep for themselves.
        measured: bytes that its file needs; None where nobody measured them.
        moved: bytes moved more than without parts.
    """

    parts: Mapping[str, int]
    modelled: int
    measured: int | None
    moved: int

    @property
    def arena(self) -> int:
        """The best that is known of the bytes it needs."""
        return self.modelled if self.measured is None else self.measured

    def __str__(self) -> str:
        split = ", ".join(f"'{name}' in {count} parts" for name, count in self.parts.items())
        return f"{self.arena:,} bytes with {split or 'no layer in parts'}"


@dataclass(frozen=True)
class Fit:
    """What the search found.

    Attributes:
        gm: the network, computed in these parts.
        plain: without parts.
        chosen: the one that fits with the fewest bytes moved.
        trials: all that were tried, in order.
    """

    gm: fx.GraphModule
    plain: Split
    chosen: Split
    trials: tuple[Split, ...]


def fit(gm: fx.GraphModule, inputs: Inputs, budget: int, arena: ArenaOf | None = None) -> Fit:
    """Compute pairs of layers in parts until the network fits ``budget``, at the fewest bytes moved.

    What is alive while a pair runs depends on its own parts only. So for every height there is a cheapest way to stay
    below it: each pair in the fewest parts that do. These ways are tried from the budget downwards until one fits as it
    is planned (the planner leaves gaps); then parts that turn out not to be needed are undone.

    Args:
        gm: in deploy form; left as it is.
        inputs: of the model.
        budget: bytes.
        arena: measures what the model of :mod:`nbcompile.core.memory.lifetimes` says fits; None takes the model's word.

    Raises:
        ExportError: if no way fits; with the best that could be reached, and how.
    """
    return _Search(gm, inputs, budget, arena).run()


class _Search:
    def __init__(self, gm: fx.GraphModule, inputs: Inputs, budget: int, arena: ArenaOf | None) -> None:
        self.gm, self.inputs, self.budget, self.arena = gm, inputs, budget, arena
        self.shapes = Shapes(gm, inputs)
        self.options = {pair: _counts(gm, pair) for pair in splittable(gm)}
        self.plain = Lifetimes(gm, inputs)
        self.heights = {(pair, 1): self._tallest(self.plain, pair.nodes[0], pair.nodes[-1]) for pair in self.options}
        self.trials: list[Split] = []

    def run(self) -> Fit:
        with step(f"searching for parts that fit {self.budget:,} bytes") as self.advance:
            return self._searched()

    def _searched(self) -> Fit:
        limit = floor = self._rest()
        limit = max(limit, self.budget)
        while True:
            way = {pair: self._fewest(pair, limit) for pair in self.options}
            trial = self._tried(way)
            if trial.arena <= self.budget:
                chosen = self._undone(way, trial)
                plain = self._tried(dict.fromkeys(way, 1))
                gm = self._split(chosen.parts)
                gm.recompile()
                return Fit(gm, plain, chosen, tuple(self.trials))
            tallest = max(way, key=lambda pair: self._height(pair, way[pair]), default=None)
            limit = 0 if tallest is None else self._height(tallest, way[tallest]) - 1
            if tallest is None or limit < floor or way[tallest] == self._least(tallest):
                raise ExportError(self._refusal())

    def _rest(self) -> int:
        """The most bytes alive while no pair runs: no parts help below that."""
        steps = self.plain.steps
        inside = {s for pair in self.options for s in range(steps[pair.nodes[0]], steps[pair.nodes[-1]] + 1)}
        outside = set(steps.values()) - inside
        return max((self.plain.bytes_at(step) for step in outside), default=0)

    def _fewest(self, pair: Splittable, limit: int) -> int:
        """The fewest parts in which no more than ``limit`` bytes are alive; where none do, those with the least."""
        fitting = (count for count in self.options[pair] if self._height(pair, count) <= limit)
        return next(fitting, None) or self._least(pair)

    def _least(self, pair: Splittable) -> int:
        return min(self.options[pair], key=lambda count: self._height(pair, count))

    def _height(self, pair: Splittable, count: int) -> int:
        """The most bytes alive while ``pair`` runs in ``count`` parts."""
        if (pair, count) not in self.heights:
            gm = self._split({pair.name: count})
            first = next(node for node in gm.graph.nodes if node.target == f"{pair.name}.part0")
            last = next(node for node in downstream([first]) if node.target is torch.cat)
            self.heights[pair, count] = self._tallest(Lifetimes(gm, self.inputs), first, last)
        return self.heights[pair, count]

    def _tallest(self, lifetimes: Lifetimes, first: fx.Node, last: fx.Node) -> int:
        return max(map(lifetimes.bytes_at, range(lifetimes.steps[first], lifetimes.steps[last] + 1)))

    def _split(self, parts: Mapping[str, int]) -> fx.GraphModule:
        # it writes its code when it is first run: most are only looked at
        gm = _LazyGraphModule(self.gm, copy.deepcopy(self.gm.graph), type(self.gm).__name__)
        SplitChannels({name: count for name, count in parts.items() if count > 1}).apply(gm)
        return gm

    def _tried(self, way: Mapping[Splittable, int]) -> Split:
        """What this way needs by the model; where that fits, as it is measured."""
        parts = {pair.name: count for pair, count in way.items() if count > 1}
        known = next((trial for trial in self.trials if trial.parts == parts), None)
        if known is not None:
            return known
        gm = self._split(parts)
        modelled = Lifetimes(gm, self.inputs).arena
        measured = self.arena(gm) if self.arena is not None and modelled <= self.budget else None
        moved = sum(self._moved(pair, count) for pair, count in way.items())
        self.trials.append(Split(parts, modelled, measured, moved))
        self.advance()
        return self.trials[-1]

    def _moved(self, pair: Splittable, count: int) -> int:
        if count == 1:
            return 0
        source, result = (self.shapes.of(node) or () for node in (pair.nodes[0].all_input_nodes[0], pair.nodes[-1]))
        return (count - 1) * prod(source[1:]) + 2 * prod(result[1:])

    def _undone(self, way: dict[Splittable, int], trial: Split) -> Split:
        """With every pair in fewer parts that still fits so, the costliest first."""
        for pair in sorted(way, key=lambda pair: -self._moved(pair, way[pair])):
            for fewer in (count for count in self.options[pair] if count < way[pair]):
                other = self._tried({**way, pair: fewer})
                if other.arena <= self.budget:
                    way, trial = {**way, pair: fewer}, other
                    break
        return trial

    def _refusal(self) -> str:
        best = min(self.trials, key=lambda trial: (trial.modelled, trial.moved))
        gm = self._split(best.parts)
        if self.arena is not None and best.measured is None:
            best = replace(best, measured=self.arena(gm))
        held = " and ".join(f"'{buffer.name}' ({buffer.nbytes:,})" for buffer in Lifetimes(gm, self.inputs).peak())
        parts = f" ({best.modelled:,} for activations; the rest is the interpreter's, and less with 32-bit pointers)"
        return (
            f"the network does not fit {self.budget:,} bytes: the best that was reached is {best}"
            f"{parts if best.measured else ''}. At its peak it holds {held} at once: give it smaller inputs or these "
            f"layers fewer channels, or allow more memory"
        )


def _counts(gm: fx.GraphModule, pair: Splittable) -> list[int]:
    channels = LayerSpec.of(gm.get_submodule(pair.name)).outputs
    return [count for count in COUNTS if channels % count == 0]
