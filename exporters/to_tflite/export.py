"""Write TFLite: quantized, run in the device's own interpreters before it gets its name.

    deploy form -> torch.export -> TensorFlow, channels last -> float file -> ranges -> integers -> checks -> files

Everything happens in memory until the checks are passed. With ``micro`` the C++ sources of a microcontroller's program
are written beside the file.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nbcompile.core.example import Inputs
from nbcompile.core.files import check_target
from nbcompile.core.progress import step
from nbcompile.exporters.to_tflite.build import BuiltFile, Samples, Variants
from nbcompile.exporters.to_tflite.companions import Companions, files_beside, write_together
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.options import AS_IT_IS, Limits, Recipe
from nbcompile.exporters.to_tflite.file.ports import Port
from nbcompile.exporters.to_tflite.memory.arrange import Arranged, arrange
from nbcompile.exporters.to_tflite.once import one_export
from nbcompile.exporters.to_tflite.proof import layer_errors, require_limits, that_count, why_constant
from nbcompile.exporters.to_tflite.quantize.learned import LearnedRanges
from nbcompile.exporters.to_tflite.result import Attempt, TfliteResult
from nbcompile.exporters.to_tflite.run.agreement import Agreement, share_as_good
from nbcompile.exporters.to_tflite.run.arena import Arena
from nbcompile.exporters.to_tflite.run.errors_by_layer import LayerError
from nbcompile.exporters.to_tflite.trials import Trials, proved, tried

INT8, ANY = Recipe(), Limits()


@dataclass(frozen=True)
class _Taken:
    """The file that is taken, and what was found of it.

    Attributes:
        file: its memory arranged where TFLite Micro is to run it.
        agreeing: with PyTorch, one per interpreter.
        arena: what it needs under TFLite Micro.
        layers: the errors of those with quantized activations, in order.
        arranged: its memory; None where TFLite Micro is not to run it.
        trials: all that was built.
        notes: what was not run, or failed, or is computed in strips.
    """

    file: BuiltFile
    agreeing: tuple[Agreement, ...]
    arena: Arena
    layers: tuple[LayerError, ...]
    arranged: Arranged | None
    trials: Trials
    notes: tuple[str, ...]

    @property
    def that_count(self) -> Sequence[Agreement]:
        """In the interpreters that the device runs."""
        return that_count(self.agreeing, self.arranged is not None)


def write_tflite(
    graph: nn.Module,
    inputs: Inputs,
    path: Path,
    *,
    reference: nn.Module | None = None,
    samples: Sequence[Inputs] = (),
    checked: Sequence[Inputs] = (),
    recipe: Recipe = INT8,
    micro: bool = False,
    how: str = AS_IT_IS,
    variants: Variants | None = None,
    correct_bias: str = "auto",
    limits: Limits = ANY,
    notes: Sequence[str] = (),
    prepared: str = "",
    pixels: np.ndarray | None = None,
    project: str | None = None,
    learned: LearnedRanges | None = None,
) -> TfliteResult:
    """Write ``graph`` as TFLite; see `base.Exporter`.

    Args:
        graph: on the CPU, in eval mode, in deploy form.
        inputs: example, batch first; the file takes one sample at a time.
        path: the output file; with ``micro`` ``STEM.h``, ``STEM.cc``, ``STEM_ops.h``, ``STEM_check.h`` and
            ``STEM_main.cc`` beside it.
        reference: the model whose outputs the file must give; None: ``graph`` itself.
        samples: they calibrate, at batch 1; may be empty where ``recipe`` needs none.
        checked: samples of the check; random ones where there are none.
        recipe: how numbers are stored.
        micro: whether TFLite Micro is to run it.
        how: what was done to ``graph``, in words.
        variants: other graphs of the same function, by what was done to them; taken if they raise the SQNR.
        correct_bias: ``auto``: if it raises the SQNR; ``always`` or ``never``.
        limits: that the file must keep.
        notes: what the user should know, for the result.
        prepared: how inputs are made of images, for the C++ header.
        pixels: what each byte of an image becomes for the network, ``(C, 256)``; None where that is not known.
        project: the sources of ``micro`` go into a folder that this tool builds, one of ``file.options.PROJECTS``.
        learned: ranges that training found; ``samples`` do not calibrate then.

    Raises:
        ExportError: if the graph cannot be expressed, an interpreter refuses it, or a limit is not kept.
        UsageError: if the file cannot be written, or an option does not fit.
    """
    started = time.perf_counter()
    wanted = Companions(path, micro, recipe.scheme, project, prepared, pixels)
    for file in (path, *wanted.names):
        check_target(file)
    if wanted.folder is not None:
        check_target(wanted.folder, folder=True)
    graphs = {how: graph, **(variants or {})}
    choosing = recipe.calibrated and (len(graphs) > 1 or recipe.several or correct_bias == "auto")
    data = Samples.of(graph if reference is None else reference, inputs, samples, checked, learned, choosing)
    with one_export():
        trials = tried(graphs, inputs, data, recipe, micro, correct_bias, learned)
    found = _taken(trials, data, recipe, micro, correct_bias, limits)
    ways = 0 if found.arranged is None else len(found.arranged.ways)
    require_limits(path, found.agreeing, found.arena, recipe.scheme, limits, micro, ways)
    with step("making what goes beside it"):
        beside, kept = files_beside(found.file, found.arena, wanted, data.given(found.file.model))
    write_together({path: found.file.content, **beside}, wanted.folder)
    said = (*notes, *_said_before(found), *kept, *_said_at_last(found, data))
    return _result(found, path, data, recipe, limits, said, tuple(beside), time.perf_counter() - started)


def _taken(trials: Trials, data: Samples, recipe: Recipe, micro: bool, correct_bias: str, limits: Limits) -> _Taken:
    """The best of ``trials`` that runs on the device.

    Raises:
        ExportError: if none does, or arranging its memory would change its outputs.
    """
    file, agreeing, arena, notes = proved(trials, data, micro, correct_bias)
    layers = layer_errors(file, data, recipe)
    if not micro:
        return _Taken(file, agreeing, arena, layers, None, trials, tuple(notes))
    found = arrange(file.content, limits, file.model.layers, data.given(file.model))
    notes = [*notes, *_arranged(found, file.model.layers)]
    file = replace(file, content=found.content)
    return _Taken(file, agreeing, found.arena, layers, found, trials, tuple(notes))


def _result(
    found: _Taken,
    path: Path,
    data: Samples,
    recipe: Recipe,
    limits: Limits,
    said: tuple[str, ...],
    beside: tuple[Path, ...],
    seconds: float,
) -> TfliteResult:
    file, arranged = found.file, found.arranged
    return TfliteResult(
        path=path,
        format="tflite",
        bytes=len(file.content),
        sha256=hashlib.sha256(file.content).hexdigest(),
        error=max(10 ** (-one.sqnr / 20) for one in found.that_count),
        tolerance=10 ** (-limits.least_sqnr(recipe.scheme) / 20),
        versions=_versions(),
        notes=said,
        seconds=seconds,
        recipe=recipe,
        micro=arranged is not None,
        agreements=found.agreeing,
        unseen=data.unseen,
        in_float=file.in_float,
        inputs=file.model.inputs,
        outputs=file.model.outputs,
        layers=found.layers,
        arena=found.arena,
        limits=limits,
        ways=() if arranged is None else arranged.ways,
        way=None if arranged is None else arranged.way,
        tried=tuple(Attempt(one.how, one.sqnr, one.float_sqnr) for one in found.trials.built),
        chosen=file.how,
        companions=beside,
    )


def _said_before(found: _Taken) -> list[str]:
    """How the file came to be."""
    return [*found.file.notes, *filter(None, [found.file.mixed]), *found.notes]


def _said_at_last(found: _Taken, data: Samples) -> list[str]:
    """What the file takes and gives, and what its SQNR says."""
    takes, gives = (", ".join(map(_port, ports)) for ports in (found.file.model.inputs, found.file.model.outputs))
    constant = next(filter(None, map(why_constant, found.that_count)), "")
    rests_on = _rests_on(found.that_count, data, len(found.trials.built))
    return [f"it takes one sample at a time: {takes}; it gives {gives}", *filter(None, [constant]), rests_on]


def _rests_on(agreeing: Sequence[Agreement], data: Samples, tried: int) -> str:
    """What the SQNR is of, and how sure it is."""
    worst = min(agreeing, key=lambda one: one.sqnr)
    part, count = worst.least, worst.samples
    kind = "of random numbers" if data.drawn else "that did not calibrate" if data.unseen else "that calibrated, too"
    of = f", in {part.name}, the part of output '{part.output}' that has the least" if part.name else ""
    error = "" if part.error is None else f", ± {part.error:.1f} dB (standard error)"
    said = f"the SQNR is of {count} {'sample' if count == 1 else 'samples'} {kind}{of}{error}"
    if data.drawn or not data.unseen:
        return f"{said}: it says little of others"
    share = share_as_good(count, tried)
    return f"{said}; the worst has {part.low:.1f} dB, which at least {share:.0%} of others like them reach (95 % sure)"


def _arranged(found: Arranged, layers: Mapping[str, str]) -> list[str]:
    """What is computed in strips of rows, in words."""
    ops = read_file(found.before).ops if found.way.regions else ()
    tensors = read_file(found.before).tensors if ops else ()

    def layer(number: int) -> str:
        name = tensors[ops[number].outputs[0]].name
        return layers.get(name, name)

    parts = [f"'{layer(r.first)}' to '{layer(r.last - 1)}' in {r.strips}" for r in found.way.regions]
    return [f"computed in strips of rows, to need less memory: {', '.join(parts)}"] if parts else []


def _port(port: Port) -> str:
    shape = " × ".join(map(str, port.shape)) or "one number"
    return f"{port.name} ({shape}{', channels last' if port.channels_last else ''})"


def _versions() -> dict[str, str | int]:
    versions: dict[str, str | int] = {"torch": str(torch.__version__)}
    return versions | {name: version(name) for name in ("tensorflow", "ai-edge-litert", "tflite-micro")}
