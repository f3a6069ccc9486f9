"""``nbcompile.export`` to ``.onnx``: as it is, or in int8 for ONNX Runtime."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from nbcompile.core.errors import UsageError
from nbcompile.core.example import Inputs, change_tensors, origin_of
from nbcompile.core.tracing.call import names_of_inputs
from nbcompile.deploy.calibration import calibration as read_calibration
from nbcompile.deploy.corrected_biases import with_corrected_biases
from nbcompile.deploy.deploy_form import deploy
from nbcompile.deploy.options import DeviceOptions
from nbcompile.deploy.to_device import EQUALIZED, PreparedGraphs
from nbcompile.exporters import ONNX, imported
from nbcompile.exporters.base import ExportResult, require_batch
from nbcompile.exporters.to_tflite.file.options import held_out

log = logging.getLogger("nbcompile")

ONNX_SCHEMES = ("float32", "int8")

INT8_OPTIONS = (
    *("calibration", "preprocessing", "per_channel", "equalize", "correct_bias"),
    *("min_sqnr", "min_agreement"),
)
"""Of `nbcompile.deploy.options.DeviceOptions`: what int8 ``.onnx`` files take, too."""


def export_onnx(
    model: nn.Module,
    inputs: Inputs,
    path: Path,
    *,
    opset: int | None = None,
    dynamic_batch: bool = True,
    batch: int | None = None,
    quantize: str = "float32",
    calibration: Any = None,
    preprocessing: Mapping[str, Any] | None = None,
    per_channel: bool | None = None,
    equalize: str | None = None,
    correct_bias: str | None = None,
    min_sqnr: float | None = None,
    min_agreement: float | None = None,
) -> ExportResult:
    """Write ``model`` as ONNX, checked in ONNX Runtime.

    Args:
        model: without expansion blocks, on the CPU, in eval mode; left as it is.
        inputs: example, batch first.
        path: the output file.
        opset: ONNX operator set; None: the exporter's default.
        dynamic_batch: whether the file takes any batch size; else it takes that of ``inputs`` only.
        batch: the one batch size that the file takes; None: as ``dynamic_batch`` says.
        quantize: ``float32``, or ``int8``: QuantizeLinear and DequantizeLinear, written by ONNX Runtime's quantizer.
        calibration: of int8, and all that follow: see `nbcompile.deploy.options.DeviceOptions`; None: as there.
        preprocessing: as there.
        per_channel: whether weights have a scale per output channel.
        equalize: as there.
        correct_bias: as there, before the network is quantized.
        min_sqnr: as there.
        min_agreement: as there.

    Raises:
        UsageError: if an option does not fit, or the calibration set is missing or does not fit.
        ExportError: if the format cannot express the model, or a limit is not kept.
    """
    given = dict(zip(INT8_OPTIONS, (calibration, preprocessing, per_channel, equalize, correct_bias), strict=False))
    given |= {"min_sqnr": min_sqnr, "min_agreement": min_agreement}
    int8 = {name: value for name, value in given.items() if value is not None}
    wanted = int8_options(quantize, int8)
    if wanted is None:
        form: dict[str, Any] = {"opset": opset, "dynamic_batch": dynamic_batch, "batch": batch}
        return ONNX.exporter()(deploy(model, inputs), inputs, path, reference=model, **form)
    if batch is not None:
        require_batch(batch)
    return _in_int8(model, inputs, path, wanted, (opset, dynamic_batch, batch))


def int8_options(quantize: str, given: Mapping[str, Any]) -> DeviceOptions | None:
    """The options of an int8 ``.onnx`` file; None for one in float32.

    Args:
        quantize: how numbers are to be stored.
        given: by the user, of ``INT8_OPTIONS``.

    Raises:
        UsageError: if they do not fit.
    """
    if quantize not in ONNX_SCHEMES:
        raise UsageError(f"quantize='{quantize}' is not of .onnx files: they have {' and '.join(ONNX_SCHEMES)}")
    if quantize == "int8":
        wanted = DeviceOptions(quantize=quantize, **given)
        wanted.require_ranges(learned=False)
        return wanted
    if given:
        raise UsageError(f"{next(iter(given))} of .onnx files goes with quantize='int8'")
    return None


def _in_int8(
    model: nn.Module, inputs: Inputs, path: Path, wanted: DeviceOptions, form: tuple[int | None, bool, int | None]
) -> ExportResult:
    form_of, write = (imported(f"nbcompile.exporters.to_onnx.quantize:{x}") for x in ("OnnxForm", "write_onnx_int8"))
    made = form_of(*form, wanted.per_channel)
    one = change_tensors(lambda x: x[:1] if x.ndim else x, inputs)
    origin = origin_of(model)
    prepared = (origin.preprocessing if origin else {}) if wanted.preprocessing is None else wanted.preprocessing
    prepared = {name: x for name, x in prepared.items() if name != "boxes"}
    data = read_calibration(wanted.calibration, one, prepared, names_of_inputs(model))
    for note in data.notes:
        log.warning("%s", note)
    samples, checked = held_out(data.samples)
    graphs = PreparedGraphs(one, samples, wanted.recipe()).variants(deploy(model, inputs), wanted.equalize)
    if wanted.equalize == "always" and EQUALIZED in graphs:
        graphs = {EQUALIZED: graphs[EQUALIZED]}

    def corrected(graph: nn.Module) -> nn.Module:
        return with_corrected_biases(graph, samples, per_channel=wanted.per_channel)

    result: ExportResult = write(
        graphs, inputs, path, reference=model, samples=samples, checked=checked, form=made,
        correct=None if wanted.correct_bias == "never" else corrected, always=wanted.correct_bias == "always",
        least=wanted.limits().least_sqnr("int8"), agreement=wanted.min_agreement, notes=data.notes,
    )  # fmt: skip
    return result
