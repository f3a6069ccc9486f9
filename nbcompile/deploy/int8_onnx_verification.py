"""The numbers of an int8 ``.onnx`` file: a signal over noise, on images like those that calibrated it."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from nbcompile.core.copies import working_copy
from nbcompile.core.errors import UsageError
from nbcompile.core.example import Inputs, change_tensors, origin_of, random_inputs, specs
from nbcompile.core.numerics import flatten
from nbcompile.core.running import output_of
from nbcompile.core.tracing.call import names_of_inputs
from nbcompile.deploy.calibration import calibration
from nbcompile.deploy.comparison_options import (
    DRAWN_INPUTS,
    IMAGES_NEEDED,
    SHOWN_IMAGES,
    ComparisonOptions,
    warn_of_agreement,
)
from nbcompile.exporters import ONNX, imported
from nbcompile.exporters.to_tflite.file.options import Limits
from nbcompile.results.checks import Check


def int8_numbers(
    reference: nn.Module, path: Path, example: Inputs, more: Sequence[Inputs], wanted: ComparisonOptions
) -> Check:
    """Compare the outputs of an int8 file with those of a network.

    Args:
        reference: in float32; left as it is.
        path: of the file.
        example: what the network is called with.
        more: inputs to compare on, beside the calibration images, at batch 1.
        wanted: images, and what may differ; without images random inputs, if the least is said.

    Raises:
        UsageError: if there is nothing to compare on, or an option does not fit.
        ExportError: if ONNX Runtime does not run the file.
    """
    if wanted.steps is not None:
        raise UsageError(f"steps={wanted.steps} is of integers, and {path} gives floats: give min_sqnr instead")
    model = working_copy(reference, training=False).cpu()
    given, what = _inputs(reference, path, example, more, wanted)
    batch = ONNX.read_batch(path)
    resized, noise_of = (imported(f"nbcompile.exporters.to_onnx.{x}") for x in ("check:resized", "quantize:noise_of"))
    outputs = ONNX.outputs(path, [resized(x, batch) if batch else x for x in given])
    found = noise_of(outputs, [flatten(output_of(model, x)) for x in given])
    least, share = Limits(sqnr=wanted.min_sqnr).least_sqnr("int8"), wanted.min_agreement
    same = "" if found.top1 is None else f", the same largest output in {found.top1:.1%}"
    agreed = "" if share is None else f", and the same largest output in {share:.1%}"
    said = f"{found.sqnr:.1f} dB of signal over noise{same} on {what}; {least:.1f} dB are asked for{agreed}"
    passed = found.sqnr >= least and (share is None or (found.top1 is not None and found.top1 >= share))
    if passed:
        warn_of_agreement(path, [found.top1], share)
    return Check("numbers", passed, said, found.sqnr)


def _inputs(
    reference: nn.Module, path: Path, example: Inputs, more: Sequence[Inputs], wanted: ComparisonOptions
) -> tuple[list[Inputs], str]:
    """Inputs at batch 1, and what they are."""
    one = change_tensors(lambda x: x[:1].cpu() if x.ndim else x.cpu(), example)
    given, what = list(more), [f"{len(more)} given inputs"] if more else []
    if wanted.calibration is not None:
        origin = origin_of(reference)
        prepared = (origin.preprocessing if origin else {}) if wanted.preprocessing is None else wanted.preprocessing
        prepared = {name: x for name, x in prepared.items() if name != "boxes"}
        images = calibration(wanted.calibration, one, prepared, names_of_inputs(reference)).samples
        images = images[:: -(-len(images) // SHOWN_IMAGES)]
        given, what = [*given, *images], [*what, f"{len(images)} calibration samples"]
    if not given:
        if wanted.min_sqnr is None:
            raise UsageError(f"{path} {IMAGES_NEEDED}")
        given = [random_inputs(specs(one), seed=seed, batch=1) for seed in range(DRAWN_INPUTS)]
        what = [f"{DRAWN_INPUTS} random inputs"]
    return given, " and ".join(what)
