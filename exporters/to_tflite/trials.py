"""The ways to quantize a network that are tried, and the one that is taken: the best that runs on the device."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from nbcompile.core.errors import ExportError
from nbcompile.core.example import Inputs
from nbcompile.core.progress import step
from nbcompile.exporters.to_tflite.build import (
    CORRECTED,
    BuiltFile,
    Samples,
    Variants,
    also,
    build_file,
    with_corrected_bias,
)
from nbcompile.exporters.to_tflite.file.options import TRIED, Recipe
from nbcompile.exporters.to_tflite.proof import agreements, arena_needed
from nbcompile.exporters.to_tflite.quantize.learned import LearnedRanges
from nbcompile.exporters.to_tflite.run.agreement import Agreement
from nbcompile.exporters.to_tflite.run.arena import Arena

log = logging.getLogger("nbcompile")

WORTH = 0.1
"""dB that changing the network must gain to be done, and that less memory may cost."""


@dataclass
class Trials:
    """What was built of one network.

    Attributes:
        built: the network as it is, or as the user wants it; then the others.
        failed: why one of these others cannot be had, one sentence each.
    """

    built: list[BuiltFile]
    failed: list[str]

    def drop(self, how: str, error: ExportError) -> None:
        """Go on without the file that is ``how``."""
        self.built = [one for one in self.built if one.how != how]
        self.failed.append(f"not taken: {how}: {error}")


@dataclass(frozen=True)
class _Way:
    """A way to quantize a network.

    Attributes:
        how: in words.
        graph: the network, after what was done to it.
        recipe: how its numbers are stored.
    """

    how: str
    graph: nn.Module
    recipe: Recipe

    def but(self, how: str, **changes: Any) -> "_Way":
        """The same with another recipe."""
        return _Way(also(self.how, how), self.graph, replace(self.recipe, **changes))


class _Search:
    """The ways that were tried so far, and what came of them."""

    def __init__(self, inputs: Inputs, data: Samples, micro: bool, learned: LearnedRanges | None, count: int) -> None:
        self.inputs, self.data, self.micro, self.learned, self.count = inputs, data, micro, learned, count
        self.trials, self.ways = Trials([], []), dict[str, _Way]()

    def build(self, way: _Way, *, corrected: bool = False, thrifty: bool = False) -> None:
        """Try one; the first must do."""
        how = also(way.how, CORRECTED) if corrected else way.how
        number = len(self.ways) + 1
        self.ways[how] = way
        try:
            with step(f"trying: {how} ({number} of {self.count})"):
                built = build_file(
                    way.graph, self.inputs, self.data, way.recipe, micro=self.micro, how=way.how, learned=self.learned
                )
                built = with_corrected_bias(built, self.data) if corrected else built
                self.trials.built.append(replace(built, thrifty=thrifty))
        except ExportError as error:
            if number == 1:
                raise
            self.trials.drop(how, error)

    def correct(self) -> None:
        """Try the best so far with corrected biases."""
        found = best(self.trials.built, "auto")
        with step(f"trying: biases corrected ({len(self.ways) + 1} of {self.count})"):
            self.trials.built.append(with_corrected_bias(found, self.data))
        self.ways[self.trials.built[-1].how] = self.ways[found.how]

    def vary(self, how: str, found: BuiltFile, thrifty: bool = False, **changes: Any) -> None:
        """Try ``found`` with another recipe: biases are corrected where they were."""
        self.build(self.ways[found.how].but(how, **changes), corrected=found.corrected, thrifty=thrifty)


def tried(
    graphs: Variants,
    inputs: Inputs,
    data: Samples,
    recipe: Recipe,
    micro: bool,
    correct_bias: str,
    learned: LearnedRanges | None = None,
) -> Trials:
    """Every graph; the best of them with corrected biases; the best of these with other ranges, and with fewer scales.

    Only where activations are integers it matters.

    Raises:
        ExportError: if the first one cannot be built; others that cannot be are left out.
    """
    estimators = [one for one in TRIED if one != recipe.estimator] if recipe.ranges == "auto" else []
    thrifty = micro and recipe.dense_per_channel is None
    count = len(graphs) + (correct_bias != "never") + len(estimators) + thrifty if recipe.calibrated else 1
    search = _Search(inputs, data, micro, learned, count)
    for how, graph in graphs.items():
        search.build(_Way(how, graph, recipe))
        if not recipe.calibrated:
            return search.trials
        if micro and len(search.ways) == 1 and search.trials.built[0].in_float:
            log.warning(
                "the file is not full-integer, a microcontroller without an FPU is slow at what is %s",
                search.trials.built[0].mixed,
            )
    if correct_bias != "never":
        search.correct()
    plain = best(search.trials.built, correct_bias)
    for estimator in estimators:
        search.vary(f"{estimator} ranges", plain, ranges=estimator)
    if thrifty:
        search.vary("linear layers per tensor", best(search.trials.built, correct_bias), True, dense_per_channel=False)
    return search.trials


def proved(
    trials: Trials, data: Samples, micro: bool, correct_bias: str
) -> tuple[BuiltFile, tuple[Agreement, ...], Arena, list[str]]:
    """The best file that runs in all interpreters of the device; how it agrees there, its memory, and notes.

    Raises:
        ExportError: if the network as it is, or what the user asks for, does not run there.
    """
    while True:
        chosen = best(trials.built, correct_bias)
        try:
            agreeing, unrun = agreements(chosen, data, micro)
            arena, modelled_only = arena_needed(chosen, micro)
        except ExportError as error:
            if chosen is trials.built[0] or correct_bias == "always":
                raise
            trials.drop(chosen.how, error)
        else:
            return chosen, agreeing, arena, [*unrun, *modelled_only, *trials.failed]


def best(built: Sequence[BuiltFile], correct_bias: str) -> BuiltFile:
    """The first one that none of the later beats.

    That is by ``WORTH`` over all samples, and no loss of that over those that did not calibrate: ranges that clip may
    suit the others alone. What needs less memory may lose ``WORTH`` over all samples, too.
    """
    if correct_bias == "always":
        built = [one for one in built if one.corrected] or built[-1:]
    taken = built[0]
    for other in built[1:]:
        least = taken.sqnr + (-WORTH if other.thrifty else WORTH)
        if other.sqnr > least and other.unseen > taken.unseen - WORTH:
            taken = other
    return taken
