"""Write TFLite: quantized, run in the device's own interpreters before it gets its name.

    deploy form -> torch.export -> TensorFlow, channels last -> float file -> ranges -> integers -> checks -> files

Everything happens in memory until the checks are passed. With ``micro`` the C++ sources of a microcontroller's program
are written beside the file.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nbcompile.core.example import Inputs
from nbcompile.core.files import check_target
from nbcompile.core.progress import step
from nbcompile.exporters.base import ExportResult
from nbcompile.exporters.to_tflite.build import BuiltFile, Samples, Variants
from nbcompile.exporters.to_tflite.companions import Companions, files_beside, write_together
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.options import AS_IT_IS, Limits, Recipe
from nbcompile.exporters.to_tflite.file.ports import Port
from nbcompile.exporters.to_tflite.memory.arrange import Arranged, arrange
from nbcompile.exporters.to_tflite.memory.search import Way
from nbcompile.exporters.to_tflite.once import one_export
from nbcompile.exporters.to_tflite.proof import layer_errors, require_limits, that_count, why_constant
from nbcompile.exporters.to_tflite.quantize.learned import LearnedRanges
from nbcompile.exporters.to_tflite.run.agreement import Agreement, share_as_good
from nbcompile.exporters.to_tflite.run.arena import Arena
from nbcompile.exporters.to_tflite.run.errors_by_layer import LayerError
from nbcompile.exporters.to_tflite.targets.cycles import Estimate
from nbcompile.exporters.to_tflite.trials import proved, tried

INT8, ANY = Recipe(), Limits()


@dataclass(frozen=True)
class Attempt:
    """A way to quantize the network that was tried.

    Attributes:
        how: what was done to the network before.
        sqnr: signal over noise of its outputs in LiteRT against PyTorch's, dB: over all samples that the choice is by,
            those that calibrate, too.
        float_sqnr: the same before quantizing: what the change itself costs.
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
        unseen: how many of the samples that they are measured on did not calibrate.
        in_float: layers of a file for integers that compute in float32 all the same; none: it is full-integer.
        inputs: name, shape and layout of each.
        outputs: likewise.
        layers: of a file with quantized activations, in order.
        arena: what it needs under TFLite Micro.
        limits: that it kept.
        ways: to arrange its memory, from the file as it was converted to the least memory; none without ``micro``.
        way: the one that was taken.
        tried: every way to quantize the network, in order.
        chosen: which of them was taken, in words.
        macs: multiply-accumulates of the network's layers, if known.
        executed_macs: those that the file performs; more where zero taps save memory.
        companions: files that were written beside it.
        estimate: how long it takes on microcontrollers; None without ``micro``.
    """

    recipe: Recipe
    micro: bool
    agreements: tuple[Agreement, ...]
    unseen: int
    in_float: tuple[str, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[LayerError, ...]
    arena: Arena
    limits: Limits
    tried: tuple[Attempt, ...]
    chosen: str
    ways: tuple[Way, ...] = ()
    way: Way | None = None
    macs: int | None = None
    executed_macs: int | None = None
    companions: tuple[Path, ...] = ()
    estimate: Estimate | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields in plain JSON types; of the arena its totals."""
        arena = {name: getattr(self.arena, name) for name in ("head", "tail", "needed", "flash", "peak_layer")}
        plain = {name: value for name, value in asdict(self).items() if name not in ("arena", "layers", "ways", "way")}
        return plain | {
            "path": str(self.path),
            "notes": list(self.notes),
            "arena": arena,
            "companions": [str(path) for path in self.companions],
        }


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
    reference = graph if reference is None else reference
    wanted = Companions(path, micro, recipe.scheme, project, prepared, pixels)
    for file in (path, *wanted.names):
        check_target(file)
    if wanted.folder is not None:
        check_target(wanted.folder, folder=True)
    graphs = {how: graph, **(variants or {})}
    choosing = recipe.calibrated and (len(graphs) > 1 or recipe.several or correct_bias == "auto")
    data = Samples.of(reference, inputs, samples, checked, learned, choosing)
    with one_export():
        trials = tried(graphs, inputs, data, recipe, micro, correct_bias, learned)
    chosen, agreeing, arena, unrun = proved(trials, data, micro, correct_bias)
    layers = layer_errors(chosen, data, recipe)
    found = arrange(chosen.content, limits, chosen.model.layers) if micro else None
    if found is not None:
        chosen, arena = replace(chosen, content=found.content), found.arena
        unrun = [*unrun, *_arranged(found, chosen.model.layers)]
    require_limits(path, agreeing, arena, recipe.scheme, limits, micro, 0 if found is None else len(found.ways))
    constant = next(filter(None, map(why_constant, that_count(agreeing, micro))), "")
    rests_on = _rests_on(that_count(agreeing, micro), data, len(trials.built))
    with step("making what goes beside it"):
        beside, kept = files_beside(chosen, arena, wanted, data.given(chosen.model))
    write_together({path: chosen.content, **beside}, wanted.folder)
    return TfliteResult(
        path=path,
        format="tflite",
        bytes=len(chosen.content),
        sha256=hashlib.sha256(chosen.content).hexdigest(),
        error=max(10 ** (-one.sqnr / 20) for one in that_count(agreeing, micro)),
        tolerance=10 ** (-limits.least_sqnr(recipe.scheme) / 20),
        versions=_versions(),
        notes=(
            *(*notes, *chosen.notes, *filter(None, [chosen.mixed]), *unrun, *kept, *_said(chosen)),
            *(*filter(None, [constant]), rests_on),
        ),
        seconds=time.perf_counter() - started,
        recipe=recipe,
        micro=micro,
        agreements=agreeing,
        unseen=data.unseen,
        in_float=chosen.in_float,
        inputs=chosen.model.inputs,
        outputs=chosen.model.outputs,
        layers=layers,
        arena=arena,
        limits=limits,
        ways=() if found is None else found.ways,
        way=None if found is None else found.way,
        tried=tuple(Attempt(one.how, one.sqnr, one.float_sqnr) for one in trials.built),
        chosen=chosen.how,
        companions=tuple(beside),
    )


def _said(built: BuiltFile) -> list[str]:
    takes, gives = (", ".join(map(_port, ports)) for ports in (built.model.inputs, built.model.outputs))
    return [f"it takes one sample at a time: {takes}; it gives {gives}"]


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
