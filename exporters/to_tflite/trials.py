"""The ways to quantize a network that are tried, and the one that is taken: the best that runs on the device."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from nbcompile.core.errors import ExportError
from nbcompile.core.example import Inputs
from nbcompile.core.progress import step
from nbcompile.exporters.to_tflite.build import BuiltFile, Samples, Variants, build_file, with_corrected_bias
from nbcompile.exporters.to_tflite.file.options import Recipe
from nbcompile.exporters.to_tflite.proof import agreements, arena_needed
from nbcompile.exporters.to_tflite.run.agreement import Agreement
from nbcompile.exporters.to_tflite.run.arena import Arena

log = logging.getLogger("nbcompile")

WORTH = 0.1
"""dB that changing the network must gain to be done."""


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


def tried(graphs: Variants, inputs: Inputs, data: Samples, recipe: Recipe, micro: bool, correct_bias: str) -> Trials:
    """Every graph; then the best of them with corrected biases. Only where activations are integers it matters.

    Raises:
        ExportError: if the first one cannot be built; others that cannot be are left out.
    """
    count = len(graphs) + (correct_bias != "never") if recipe.calibrated else 1
    trials = Trials([], [])
    for number, (how, graph) in enumerate(graphs.items(), 1):
        try:
            with step(f"trying: {how} ({number} of {count})"):
                trials.built.append(build_file(graph, inputs, data, recipe, micro=micro, how=how))
        except ExportError as error:
            if number == 1:
                raise
            trials.drop(how, error)
        if not recipe.calibrated:
            return trials
        if micro and number == 1 and trials.built[0].in_float:
            log.warning(
                "the file is not full-integer, a microcontroller without an FPU is slow at what is %s",
                trials.built[0].mixed,
            )
    if correct_bias != "never":
        with step(f"trying: biases corrected ({count} of {count})"):
            trials.built.append(with_corrected_bias(best(trials.built, "auto"), data))
    return trials


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
    """The first one that none of the later beats by ``WORTH``."""
    if correct_bias == "always":
        return built[-1]
    taken = built[0]
    for other in built[1:]:
        if other.sqnr > taken.sqnr + WORTH:
            taken = other
    return taken
