"""``verify`` of ``.tflite`` files, in the interpreters of their devices, against a network or against another file.

Two files that store their outputs as the same integers must give the same ones, on images and on inputs drawn over all
that theirs can hold. Where they store them otherwise, and against a network, outputs must have a signal over noise as
when a file is exported; on images, if images calibrated the file.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nbcompile.core.errors import UsageError
from nbcompile.core.example import ExampleInput, as_inputs
from nbcompile.core.options import keywords_of
from nbcompile.core.progress import step
from nbcompile.deploy.calibration import calibration
from nbcompile.deploy.comparison_options import (
    DRAWN_INPUTS,
    IMAGES_NEEDED,
    SHOWN_IMAGES,
    ComparisonOptions,
    warn_of_agreement,
)
from nbcompile.deploy.device_originals import Original, original_file, original_network, stored_inputs
from nbcompile.exporters.to_tflite.comparison import (
    FileOnDisk,
    MayDiffer,
    PortShapes,
    drawn_numbers,
    how_far,
    why_not_run,
)
from nbcompile.exporters.to_tflite.file.inspect import tflite_layers, tflite_scheme, tflite_weights
from nbcompile.exporters.to_tflite.file.options import CALIBRATED, INTERPRETERS
from nbcompile.exporters.to_tflite.run.agreement import compared
from nbcompile.exporters.to_tflite.run.interpreters import Sample
from nbcompile.results.checks import Check, Verification

log = logging.getLogger("nbcompile")


@keywords_of(ComparisonOptions)
def verify_tflite(
    reference: nn.Module | str | Path,
    candidate: str | Path,
    example_input: ExampleInput | None = None,
    *,
    inputs: Sequence[ExampleInput] = (),
    numbers: bool = True,
    **options: Any,
) -> Verification:
    """Compare a ``.tflite`` file with a network, or with another ``.tflite`` file.

    Args:
        reference: any network, or the path of a file.
        candidate: the file.
        example_input: what the network is called with; may be left out where it remembers, or the file knows.
        inputs: more inputs to compare outputs on, in PyTorch's layout.
        numbers: whether to compare outputs; False where the weights of ``reference`` mean nothing.
        **options: the fields of `nbcompile.deploy.comparison_options.ComparisonOptions`.

    Raises:
        UsageError: if an option does not fit, or the calibration set does not.
        CheckpointError: if a file cannot be read.
        ExportError: if LiteRT refuses a file.
    """
    wanted = ComparisonOptions(**options)
    file = FileOnDisk.read(Path(candidate))
    if wanted.steps is not None and not file.in_steps:
        raise UsageError(f"steps={wanted.steps} is of integers, and {file.path} gives floats: give min_sqnr instead")
    if isinstance(reference, nn.Module):
        original = original_network(reference, example_input, file)
    else:
        original = original_file(Path(reference))
    checks = [_ports(file, original)]
    if checks[0].passed:
        checks += _costs(file, original)
        if numbers:
            checks += _numbers(file, original, wanted, [as_inputs(x) for x in inputs])
    return Verification(tuple(checks), ())


def _ports(file: FileOnDisk, original: Original) -> Check:
    pairs = {"input": (file.input_shapes, original.inputs), "output": (file.output_shapes, original.outputs)}
    for kind, (held, wanted) in pairs.items():
        if held != wanted:
            detail = f"the candidate has {kind}s of {_shown(held)}, the original of {_shown(wanted)}"
            return Check("inputs and outputs", False, detail)
    return Check("inputs and outputs", True, f"{_shown(file.input_shapes)} to {_shown(file.output_shapes)}")


def _shown(shapes: PortShapes) -> str:
    return ", ".join(" × ".join(map(str, shape)) or "one number" for shape in shapes) or "none"


def _costs(file: FileOnDisk, original: Original) -> Iterator[Check]:
    """A file may cost less: what can be left out is; biases are not counted."""
    held = {"MACs": sum(layer.macs for layer in tflite_layers(file.path)), "params": tflite_weights(file.file)}
    for name, allowed in (("MACs", original.macs), ("params", original.params)):
        detail = f"{held[name]:,} in the candidate, {allowed:,} in the original"
        yield Check(name, held[name] <= allowed, detail, held[name])


def _numbers(file: FileOnDisk, original: Original, wanted: ComparisonOptions, more: Sequence[Any]) -> Iterator[Check]:
    """One check an interpreter that runs the files: the first inputs that fail, or else the first."""
    allowed = MayDiffer.between(file, original.file, wanted.steps, wanted.min_sqnr, wanted.min_agreement)
    groups = dict(_groups(file, original, wanted, more, allowed))
    if not groups:
        raise UsageError(f"{file.path} {IMAGES_NEEDED}")
    files = [one for one in (original.file, file) if one is not None]
    shares: list[float | None] = []
    for kernels, name in INTERPRETERS.items():
        if kernels == "reference":  # some of its kernels are wrong
            continue
        if reasons := [why for one in files if (why := why_not_run(kernels, one))]:
            log.warning("%s", reasons[0])
            continue
        found = []
        for what, samples in groups.items():
            with step(f"comparing outputs in {name}"):
                agreement = compared(file.content, samples, original.run(samples, kernels), kernels=kernels)
            broken = allowed.broken_by(agreement)
            detail = f"{how_far(agreement)} on {what}{'; ' if broken else ''}{broken}"
            value = agreement.max_lsb if allowed.sqnr is None else agreement.sqnr
            found.append(Check(f"numbers in {name}", not broken, detail, value))
            shares += [] if broken else [agreement.top1]
        yield next((check for check in found if not check.passed), found[0])
    warn_of_agreement(file.path, shares, wanted.min_agreement)


def _groups(
    file: FileOnDisk, original: Original, wanted: ComparisonOptions, more: Sequence[Any], allowed: MayDiffer
) -> Iterator[tuple[str, list[Sample]]]:
    """Inputs that are judged by themselves, and what they are."""
    if wanted.calibration is not None:
        prepared = original.preprocessing if wanted.preprocessing is None else wanted.preprocessing
        images = calibration(wanted.calibration, original.example, prepared, original.names).samples
        images = images[:: -(-len(images) // SHOWN_IMAGES)]
        yield f"{len(images)} calibration samples", [stored_inputs(one, file.input_shapes) for one in images]
    if allowed.steps is not None or (wanted.calibration is None and not _calibrated(file, original, wanted)):
        yield f"{DRAWN_INPUTS} random inputs", drawn_numbers((original.file or file).file, DRAWN_INPUTS)
    if more:
        yield f"{len(more)} given inputs", [stored_inputs(one, file.input_shapes) for one in more]


def _calibrated(file: FileOnDisk, original: Original, wanted: ComparisonOptions) -> bool:
    """Whether the least that is asked for is that of files whose ranges come from images."""
    schemes = [tflite_scheme(one.file) for one in (file, original.file) if one is not None]
    return wanted.min_sqnr is None and any(scheme in CALIBRATED for scheme in schemes)
