"""Write TFLite: quantised, run in the device's own interpreters before it gets its name.

    deploy form -> torch.export -> TensorFlow, channels last -> float file -> ranges -> integers -> checks -> files

Everything happens in memory until the checks are passed. With ``micro`` the C++ sources of a microcontroller's program
are written beside the file.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nbcompile.core.errors import ExportError
from nbcompile.core.example import Inputs
from nbcompile.core.files import atomic, check_target
from nbcompile.exporters.base import ExportResult
from nbcompile.exporters.micro_boards import why_over_budget
from nbcompile.exporters.micro_code import sources
from nbcompile.exporters.micro_resolver import check_ops
from nbcompile.exporters.raspberrypi import benchmark_script
from nbcompile.exporters.tflite_arena import Arena, measured, modelled
from nbcompile.exporters.tflite_build import Built, Data, Variants, build, lowered, with_corrected_bias
from nbcompile.exporters.tflite_check import Agreement, compared
from nbcompile.exporters.tflite_file import read
from nbcompile.exporters.tflite_kernels import kernel_differences
from nbcompile.exporters.tflite_layers import LayerError, by_layer
from nbcompile.exporters.tflite_options import INTERPRETERS, LEAST_SQNR, Limits, Recipe

INT8, ANY = Recipe(), Limits()

WORTH = 0.1
"""dB that changing the network must gain to be done."""


@dataclass(frozen=True)
class Trial:
    """A way to quantise the network that was tried.

    Attributes:
        how: what was done to the network before.
        sqnr: signal over noise of its outputs in LiteRT against PyTorch's, dB.
        float_sqnr: the same before quantising: what the change itself costs.
    """

    how: str
    sqnr: float
    float_sqnr: float


@dataclass(frozen=True, kw_only=True)
class TfliteResult(ExportResult):
    """A ``.tflite`` file that was run in its interpreters.

    ``error`` and ``tolerance`` are root mean square errors over root mean squares: ``10 ** (-SQNR / 20)``.

    Attributes:
        recipe: how it stores its numbers.
        micro: whether it is for TFLite Micro.
        agreements: with PyTorch, one per interpreter.
        layers: of a file with quantised activations, in order.
        arena: what it needs under TFLite Micro.
        limits: that it kept.
        tried: every way to quantise the network, in order.
        chosen: which of them was taken, in words.
        macs: multiply-accumulates of the network's layers, if known.
        executed_macs: those that the file performs; more where zero taps save memory.
        companions: files that were written beside it.
    """

    recipe: Recipe
    micro: bool
    agreements: tuple[Agreement, ...]
    layers: tuple[LayerError, ...]
    arena: Arena
    limits: Limits
    tried: tuple[Trial, ...]
    chosen: str
    macs: int | None = None
    executed_macs: int | None = None
    companions: tuple[Path, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields in plain JSON types; of the arena its totals."""
        arena = {name: getattr(self.arena, name) for name in ("head", "tail", "needed", "flash", "peak_layer")}
        plain = {name: value for name, value in asdict(self).items() if name not in ("arena", "layers")}
        return plain | {
            "path": str(self.path),
            "notes": list(self.notes),
            "arena": arena,
            "companions": [str(path) for path in self.companions],
        }


def export(
    graph: nn.Module,
    inputs: Inputs,
    path: Path,
    *,
    reference: nn.Module | None = None,
    samples: Sequence[Inputs] = (),
    recipe: Recipe = INT8,
    micro: bool = False,
    variants: Variants | None = None,
    correct_bias: str = "auto",
    limits: Limits = ANY,
    notes: Sequence[str] = (),
    prepared: str = "",
) -> TfliteResult:
    """Write ``graph`` as TFLite; see `base.Exporter`.

    Args:
        graph: on the CPU, in eval mode, in deploy form.
        inputs: example, batch first; the file takes one sample at a time.
        path: the output file; with ``micro`` ``STEM.h``, ``STEM.cc``, ``STEM_ops.h`` and ``STEM_main.cc`` beside it.
        reference: the model whose outputs the file must give; None: ``graph`` itself.
        samples: the calibration set, at batch 1; the check runs some of it, or random inputs where it is empty.
        recipe: how numbers are stored.
        micro: whether TFLite Micro is to run it.
        variants: other graphs of the same function, by what was done to them; taken if they raise the SQNR.
        correct_bias: ``auto``: if it raises the SQNR; ``always`` or ``never``.
        limits: that the file must keep.
        notes: what the user should know, for the result.
        prepared: how inputs are made of images, for the C++ header.

    Raises:
        ExportError: if the graph cannot be expressed, an interpreter refuses it, or a limit is not kept.
        UsageError: if the file cannot be written, or an option does not fit.
    """
    started = time.perf_counter()
    reference = graph if reference is None else reference
    for file in (path, *(path.with_name(name) for name in _companions(path.stem, micro, recipe))):
        check_target(file)
    data = Data.of(reference, inputs, samples)
    try:
        tried = _tried(graph, inputs, data, recipe, micro, variants or {}, correct_bias)
    except ExportError:
        if reference is not graph:  # the user's own code has places to name; the deploy form has lost them
            lowered(reference, inputs, micro)
        raise
    chosen = _best(tried, correct_bias)
    agreements, unrun = _agreements(chosen, data, micro)
    arena, modelled_only = _arena(chosen, micro)
    least = LEAST_SQNR[recipe.scheme] if limits.sqnr is None else limits.sqnr
    _require(path, agreements, arena, least, limits)
    written = {path: chosen.content} | _companion_files(chosen, path, arena, micro, recipe, prepared)
    with ExitStack() as stack:
        for file, content in written.items():
            stack.enter_context(atomic(file)).write_bytes(content)
    return TfliteResult(
        path=path,
        format="tflite",
        bytes=len(chosen.content),
        error=max(10 ** (-one.sqnr / 20) for one in agreements),
        tolerance=10 ** (-least / 20),
        versions=_versions(),
        notes=(*notes, *chosen.notes, *unrun, *modelled_only, *_said(chosen)),
        seconds=time.perf_counter() - started,
        recipe=recipe,
        micro=micro,
        agreements=agreements,
        layers=_layers(chosen, data, recipe),
        arena=arena,
        limits=limits,
        tried=tuple(Trial(one.how, one.sqnr, one.float_sqnr) for one in tried),
        chosen=chosen.how,
        companions=tuple(written)[1:],
    )


def _companions(stem: str, micro: bool, recipe: Recipe) -> tuple[str, ...]:
    if micro:
        return (f"{stem}.h", f"{stem}.cc", f"{stem}_ops.h", f"{stem}_main.cc")
    return () if recipe.scheme == "float32" else (f"{stem}_float32.tflite", f"{stem}_benchmark.py")


def _companion_files(
    built: Built, path: Path, arena: Arena, micro: bool, recipe: Recipe, prepared: str
) -> dict[Path, bytes]:
    """What is written beside the file: a microcontroller's sources, or what tells on a Raspberry Pi which is faster."""
    names = _companions(path.stem, micro, recipe)
    if micro:
        texts = sources(built.content, path.stem, arena.needed or arena.head, [prepared] if prepared else [])
    elif names:
        whole, script = names
        texts = {script: benchmark_script({path.name: built.content, whole: built.model.content})}
        return {path.with_name(whole): built.model.content, path.with_name(script): texts[script].encode()}
    else:
        texts = {}
    return {path.with_name(name): texts[name].encode() for name in names}


def _tried(
    graph: nn.Module, inputs: Inputs, data: Data, recipe: Recipe, micro: bool, variants: Variants, correct_bias: str
) -> list[Built]:
    """The network as it is, the variants, and the best of them with corrected biases."""
    tried = [build(graph, inputs, data, recipe, micro=micro)]
    if recipe.calibrated:
        tried += [build(other, inputs, data, recipe, micro=micro, how=how) for how, other in variants.items()]
        if correct_bias != "never":
            tried.append(with_corrected_bias(_best(tried, "auto"), data))
    return tried


def _best(tried: Sequence[Built], correct_bias: str) -> Built:
    """The first one that none of the later beats by ``WORTH``."""
    if correct_bias == "always":
        return tried[-1]
    best = tried[0]
    for other in tried[1:]:
        if other.sqnr > best.sqnr + WORTH:
            best = other
    return best


def _agreements(built: Built, data: Data, micro: bool) -> tuple[tuple[Agreement, ...], list[str]]:
    """With PyTorch, in each interpreter that can run the file; why one cannot is a note, or an error if it has to."""
    given, expected = data.given(built.model), data.expected(built.model)
    found, notes = [], []
    for kernels, name in INTERPRETERS.items():
        try:
            if kernels == "micro":
                check_ops(read(built.content))
            found.append(compared(built.content, given, expected, kernels=kernels))
        except ExportError as error:
            if kernels == "xnnpack" or (kernels == "micro" and micro):
                raise
            notes.append(f"not run in {name}: {error}")
    if micro:
        rows = kernel_differences(built.content, given[:1], layers=built.model.layers)
        notes += [
            f"'{row.layer}' differs by more than 1 LSB between LiteRT and TFLite Micro"
            for row in rows
            if not row.inside
        ]
    return tuple(found), notes


def _arena(built: Built, micro: bool) -> tuple[Arena, list[str]]:
    """As TFLite Micro measures it, or else by our model of its planner."""
    try:
        check_ops(read(built.content))
        return measured(built.content, built.model.layers), []
    except ExportError:
        if micro:
            raise
        return modelled(built.content, built.model.layers), ["its arena is by our model of TFLite Micro's planner"]


def _require(path: Path, agreements: Sequence[Agreement], arena: Arena, least: float, limits: Limits) -> None:
    """Raise ExportError if a limit is not kept."""
    for one in agreements:
        if one.kernels == "reference":  # no device runs them, and some are wrong: int8 SUM is
            continue
        if not one.sqnr >= least:
            raise ExportError(
                f"{path}: in {INTERPRETERS[one.kernels]} the outputs have {one.sqnr:.1f} dB of signal over noise "
                f"against PyTorch's, and {least:.1f} dB are asked for; no file was kept. Calibrate on more images, "
                f"try quantize='int16x8' or float_layers=…, or allow less with min_sqnr"
            )
        if limits.agreement is not None and one.top1 is not None and not one.top1 >= limits.agreement:
            raise ExportError(
                f"{path}: in {INTERPRETERS[one.kernels]} {one.top1:.1%} of the samples have PyTorch's largest output, "
                f"and {limits.agreement:.1%} are asked for; no file was kept"
            )
    over = why_over_budget(arena.needed or arena.head, arena.flash, limits.sram, limits.flash)
    if over:
        raise ExportError(f"{path}: {over}; no file was kept")


def _layers(built: Built, data: Data, recipe: Recipe) -> tuple[LayerError, ...]:
    return tuple(by_layer(built.model, built.content, data.given(built.model))) if recipe.calibrated else ()


def _said(built: Built) -> list[str]:
    return [f"it takes one sample at a time: {port.name}, {_shape(port.shape)}" for port in built.model.inputs]


def arena_of(graph: nn.Module, inputs: Inputs, samples: Sequence[Inputs], recipe: Recipe) -> int:
    """Bytes that the file of ``graph`` needs under TFLite Micro.

    Args:
        graph: as of :func:`export`.
        inputs: as of :func:`export`.
        samples: the calibration set; the first will do, for sizes do not depend on it.
        recipe: as of :func:`export`.

    Raises:
        ExportError: as :func:`export`.
    """
    content = build(graph, inputs, Data.of(graph, inputs, samples[:1]), recipe, micro=True).content
    arena = measured(content)
    return arena.needed or arena.head


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _versions() -> dict[str, str | int]:
    found: dict[str, str | int] = {"torch": str(torch.__version__)}
    return found | {name: version(name) for name in ("tensorflow", "ai-edge-litert", "tflite-micro")}
