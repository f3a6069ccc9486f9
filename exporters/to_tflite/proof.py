"""What is proved of a ``.tflite`` file before it is written: agreement with PyTorch, memory, limits."""

from collections.abc import Sequence
from pathlib import Path

from nbcompile.core.errors import ExportError
from nbcompile.core.progress import step
from nbcompile.exporters.to_tflite.build import BuiltFile, Samples
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.options import INTERPRETERS, MORE_SQNR, Limits, Recipe
from nbcompile.exporters.to_tflite.run.agreement import Agreement
from nbcompile.exporters.to_tflite.run.arena import Arena, measure_arena, modelled
from nbcompile.exporters.to_tflite.run.errors_by_layer import LayerError, by_layer
from nbcompile.exporters.to_tflite.run.kernels import kernel_differences
from nbcompile.exporters.to_tflite.run.survival import require_survival
from nbcompile.exporters.to_tflite.targets.boards import why_over_budget
from nbcompile.exporters.to_tflite.targets.micro_operators import check_ops

VARIED = 3.0
"""dB that must be left of what differs between samples: with less, half of it is noise, as if it were a constant."""

ROOM = 3.0
"""dB above a limit below which the scale of an output is to blame: half of the noise is its rounding."""


def agreements(built: BuiltFile, data: Samples, micro: bool) -> tuple[tuple[Agreement, ...], list[str]]:
    """With PyTorch, in each interpreter that can run the file; why one cannot is a note, or an error if it has to."""
    agreeing, notes = [], []
    for kernels, name in INTERPRETERS.items():
        try:
            if kernels == "micro":
                check_ops(read_file(built.content))
                require_survival(built.content)
            with step(f"comparing it with PyTorch in {name}"):
                agreeing.append(data.agreement(built.model, built.content, kernels))
        except ExportError as error:
            if kernels == "xnnpack" or (kernels == "micro" and micro):
                raise
            notes.append(f"not run in {name}: {error}")
    if micro:
        rows = kernel_differences(built.content, data.given(built.model)[:1], layers=built.model.layers)
        notes += [
            f"'{row.layer}' differs by more than 1 LSB between LiteRT and TFLite Micro"
            for row in rows
            if not row.inside
        ]
    return tuple(agreeing), notes


def arena_needed(built: BuiltFile, micro: bool) -> tuple[Arena, list[str]]:
    """As TFLite Micro measures it, or else by our model of its planner."""
    try:
        check_ops(read_file(built.content))
        with step("measuring its memory in TFLite Micro"):
            return measure_arena(built.content, built.model.layers), []
    except ExportError:
        if micro:
            raise
        return modelled(built.content, built.model.layers), ["its arena is by our model of TFLite Micro's planner"]


def that_count(agreeing: Sequence[Agreement], micro: bool) -> list[Agreement]:
    """Those in interpreters that the device runs: never in reference kernels, of which some are wrong (int8 SUM)."""
    return [one for one in agreeing if one.kernels == "xnnpack" or (one.kernels == "micro" and micro)]


def require_limits(
    path: Path, agreeing: Sequence[Agreement], arena: Arena, scheme: str, limits: Limits, micro: bool, ways: int = 0
) -> None:
    """Raise ExportError if a limit is not kept, in an interpreter that the device runs.

    Args:
        path: of the file.
        agreeing: with PyTorch, in each interpreter.
        arena: what the file needs.
        scheme: how it stores numbers.
        limits: to keep.
        micro: whether TFLite Micro is to run it.
        ways: of how many arrangements of its memory ``arena`` is the one that fits, or the least.
    """
    least = limits.least_sqnr(scheme)
    for one in that_count(agreeing, micro):
        if not one.sqnr >= least:
            part = one.least
            raise ExportError(
                f"{path}: in {INTERPRETERS[one.kernels]} {part.name or 'the outputs'} "
                f"{'has' if part.name else 'have'} {one.sqnr:.1f} dB of signal over noise against PyTorch's, and "
                f"{least:.1f} dB are asked for; no file was kept. {_remedy(one, least, scheme)}"
            )
        if limits.sqnr is not None and (lost := why_constant(one, min(VARIED, least))):
            raise ExportError(f"{path}: {lost}. With min_sqnr that is refused; no file was kept")
        if limits.agreement is None:
            continue
        if one.top1 is None:
            raise ExportError(
                f"{path}: min_agreement is about the largest of several values, and no output has several; no file was "
                "kept: leave it out"
            )
        if not one.top1 >= limits.agreement:
            raise ExportError(
                f"{path}: in {INTERPRETERS[one.kernels]} {one.top1:.1%} of the samples have PyTorch's largest output, "
                f"and {limits.agreement:.1%} are asked for; no file was kept"
            )
    over = why_over_budget(arena.needed or arena.head, arena.flash, limits.sram, limits.flash)
    if over and limits.sram is not None and (arena.needed or arena.head) > limits.sram and ways > 1:
        over += f". It is the least of {ways} arrangements (--memory-plan), and at its peak at '{arena.peak_layer}'"
    if over:
        raise ExportError(f"{path}: {over}; no file was kept")


def why_constant(found: Agreement, least: float = VARIED) -> str:
    """That a constant would do as well as a part of the outputs, and what to do; empty where none would."""
    for part in found.parts:
        if part.varied is not None and part.varied < least:
            who = f"{part.name} has" if part.name else "the outputs have"
            alone = f", or use float_layers='{part.output}' with io='float'" if part.output else ""
            return (
                f"in {INTERPRETERS[found.kernels]} {who} {part.sqnr:.1f} dB of signal over noise, but what differs "
                f"between samples has {part.varied:.1f} dB: a constant would do as well. Train the network, or add "
                f"what is constant behind it{alone}"
            )
    return ""


def _remedy(found: Agreement, least: float, scheme: str) -> str:
    """What may help where the part with the least noise does not reach ``least`` dB."""
    part = found.least
    beside = [other for other in found.parts if other.output == part.output and other.sqnr >= least]
    if not beside or part.limit is None or part.limit > least + ROOM:
        return f"{MORE_SQNR[scheme]}, or allow less with min_sqnr"
    best = max(beside, key=lambda other: other.sqnr)
    alone = (
        f"It is in one output, '{part.output}', with {best.name} ({best.sqnr:.1f} dB), and an output has one scale: "
        f"return it as an output of its own"
    )
    return alone if scheme == "int16x8" else f"{alone}, or use float_layers='{part.output}' with io='float'"


def layer_errors(built: BuiltFile, data: Samples, recipe: Recipe) -> tuple[LayerError, ...]:
    """Layer by layer, of a file whose activations are integers."""
    return tuple(by_layer(built.model, built.content, data.given(built.model))) if recipe.calibrated else ()
