"""int8 for ONNX Runtime: QuantizeLinear and DequantizeLinear (QDQ), as its own quantizer writes them.

    float file -> ranges of every value on the calibration set -> QDQ -> ONNX Runtime against PyTorch -> file

Activations are uint8 with one scale and zero point a tensor, weights int8 with one scale a channel, biases 32 bits: of
int8 activations that two layers read (residuals), ONNX Runtime 1.32 leaves both layers in float on x86. Of several
graphs of the same function the one with the least noise is taken. A QDQ file describes its arithmetic in floats between
conversions; ONNX Runtime fuses these into integer kernels (``QLinearConv``, ``QGemm``, ...) when it loads the file, and
how many of the layers it did that for is counted.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn

from nbcompile.core.errors import ExportError, UsageError
from nbcompile.core.example import Inputs
from nbcompile.core.files import atomic
from nbcompile.core.input_files import require_written
from nbcompile.core.judging.decibels import sqnr
from nbcompile.core.numerics import flatten
from nbcompile.core.progress import step
from nbcompile.core.running import output_of
from nbcompile.core.words import first_line
from nbcompile.exporters.base import ExportResult
from nbcompile.exporters.to_onnx.check import EXACT_INT8, onnx_outputs, resized, session_options
from nbcompile.exporters.to_onnx.export import write_onnx
from nbcompile.exporters.to_onnx.file import LAYERS
from nbcompile.exporters.to_onnx.graph import quiet_exporter

OLDEST_OPSET = 13
"""The first whose QuantizeLinear has a scale per channel."""


_SEEN = 0.5
"""dB less, from which on it is said that this processor's sums saturate."""


@dataclass(frozen=True)
class OnnxForm:
    """What the file is to be.

    Attributes:
        opset: ONNX operator set; None: the exporter's default.
        dynamic_batch: whether it takes any batch size; else that of the example.
        batch: the one batch size that it takes; None: as ``dynamic_batch`` says.
        per_channel: whether weights have a scale per output channel.
    """

    opset: int | None = None
    dynamic_batch: bool = True
    batch: int | None = None
    per_channel: bool = True

    def __post_init__(self) -> None:
        if self.opset is not None and self.opset < OLDEST_OPSET:
            raise UsageError(f"opset={self.opset} has no int8 with a scale per channel: give {OLDEST_OPSET} or more")


@dataclass(frozen=True)
class OnnxNoise:
    """The outputs of a file in ONNX Runtime against PyTorch's.

    Attributes:
        sqnr: signal over noise, dB, of the output that has the least.
        low: the same of the worst sample by itself.
        top1: share of the samples whose largest value is at the same place; None where no output has two.
    """

    sqnr: float
    low: float
    top1: float | None


@dataclass(frozen=True, kw_only=True)
class QuantizedOnnx(ExportResult):
    """An int8 ``.onnx`` file; ``error`` and ``tolerance`` are ``10 ** (-SQNR / 20)``.

    Attributes:
        noise: against PyTorch, on the samples of the check.
        chosen: what was done to the network before it was quantized, in words.
        tried: the SQNR of every graph, by what was done to it.
        layers: how many multiply.
        in_integers: how many of them ONNX Runtime computes in integers on this machine.
    """

    noise: OnnxNoise
    chosen: str
    tried: Mapping[str, float]
    layers: int
    in_integers: int


@dataclass(frozen=True)
class _Trial:
    how: str
    graph: nn.Module
    content: bytes
    noise: OnnxNoise


def write_onnx_int8(
    graphs: Mapping[str, nn.Module],
    inputs: Inputs,
    path: Path,
    *,
    reference: nn.Module,
    samples: Sequence[Inputs],
    checked: Sequence[Inputs],
    form: OnnxForm,
    correct: Callable[[nn.Module], nn.Module] | None,
    least: float,
    agreement: float | None = None,
    always: bool = False,
    notes: Sequence[str] = (),
) -> QuantizedOnnx:
    """Write the best of ``graphs`` as int8 ONNX.

    Args:
        graphs: in deploy form, of the same function, by what was done to them.
        inputs: example, batch first.
        path: the output file.
        reference: the model whose outputs the file must give.
        samples: they calibrate, at batch 1.
        checked: samples of the check, at batch 1.
        form: what the file is to be.
        correct: gives a graph with corrected biases; None: that is not tried.
        least: dB that the outputs must have.
        agreement: share of the samples whose largest output must be the same; None: any.
        always: whether corrected biases are taken even where they do not help.
        notes: what the user should know, for the result.

    Raises:
        ExportError: if a graph cannot be expressed or quantized, or a limit is not kept.
        UsageError: if the file cannot be written.
    """
    started = time.perf_counter()
    expected = [flatten(output_of(reference, one)) for one in checked]
    with TemporaryDirectory() as folder:
        making = _Making(Path(folder), inputs, samples, list(zip(checked, expected, strict=True)), form)
        trials = [making.trial(how, graph) for how, graph in graphs.items()]
        best = max(trials, key=lambda one: one.noise.sqnr)
        if correct is not None:
            trials.append(making.trial(f"{best.how}, biases corrected", correct(best.graph)))
            best = trials[-1] if always else max(best, trials[-1], key=lambda one: one.noise.sqnr)
        fused, layers = making.fused(best.content)
        saturated = making.saturated(best)
    _require(path, best.noise, least, agreement)
    digest = hashlib.sha256(best.content).hexdigest()
    with atomic(path) as temporary:
        temporary.write_bytes(best.content)
        require_written(path, digest, temporary)
    return QuantizedOnnx(
        path=path,
        format="onnx",
        bytes=len(best.content),
        sha256=digest,
        error=10 ** (-best.noise.sqnr / 20),
        tolerance=10 ** (-least / 20),
        versions={"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__},
        notes=(*notes, *_said(best, trials, len(checked), fused, layers), *saturated),
        seconds=time.perf_counter() - started,
        noise=best.noise,
        chosen=best.how,
        tried={one.how: one.noise.sqnr for one in trials},
        layers=layers,
        in_integers=fused,
    )


def _said(best: _Trial, trials: Sequence[_Trial], count: int, fused: int, layers: int) -> list[str]:
    noise = best.noise
    same = "" if noise.top1 is None else f", the same largest output in {noise.top1:.1%}"
    return [
        f"int8: {noise.sqnr:.1f} dB of signal over noise against PyTorch on {count} samples that did not calibrate "
        f"(the worst {noise.low:.1f} dB){same}",
        f"tried: {'; '.join(f'{one.how} {one.noise.sqnr:.2f} dB' for one in trials)}; taken: {best.how}",
        f"ONNX Runtime computes {fused} of {layers} layers in integers on this machine",
    ]


def _require(path: Path, noise: OnnxNoise, least: float, agreement: float | None) -> None:
    if not noise.sqnr >= least:
        raise ExportError(
            f"{path}: in ONNX Runtime the outputs have {noise.sqnr:.1f} dB of signal over noise against PyTorch's, and "
            f"{least:.1f} dB are asked for; no file was kept. Calibrate on more images, or allow less with min_sqnr"
        )
    if agreement is not None and not (noise.top1 is not None and noise.top1 >= agreement):
        found = "no output has several values" if noise.top1 is None else f"{noise.top1:.1%} of the samples have it"
        raise ExportError(
            f"{path}: PyTorch's largest output is asked for in {agreement:.1%}, and {found}; no file was kept"
        )


@dataclass(frozen=True)
class _Making:
    """What all trials share."""

    folder: Path
    inputs: Inputs
    samples: Sequence[Inputs]
    checked: Sequence[tuple[Inputs, list[Tensor]]]
    form: OnnxForm

    def trial(self, how: str, graph: nn.Module) -> _Trial:
        """One graph, quantized and measured."""
        source, target = self.folder / "float.onnx", self.folder / "int8.onnx"
        form = self.form
        with step(f"quantizing: {how}"):
            write_onnx(graph, self.inputs, source, opset=form.opset, dynamic_batch=form.dynamic_batch, batch=form.batch)
            names = [value.name for value in onnx.load(source).graph.input]
            try:
                with quiet_exporter():
                    quantize_static(
                        source, target, _Reader(names, [self.batched(one) for one in self.samples]),
                        quant_format=QuantFormat.QDQ, per_channel=form.per_channel,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                    )  # fmt: skip
            except Exception as error:  # ONNX Runtime's quantizer raises many kinds
                raise ExportError(f"ONNX Runtime's quantizer cannot quantize the graph: {first_line(error)}") from error
        return _Trial(how, graph, target.read_bytes(), self.noise(target))

    def noise(self, path: Path, *, exact_int8: bool = True) -> OnnxNoise:
        """Of a file, on the samples of the check."""
        outputs = onnx_outputs(path, [self.batched(one) for one, _ in self.checked], exact_int8=exact_int8)
        return noise_of(outputs, [one for _, one in self.checked])

    def saturated(self, best: _Trial) -> list[str]:
        """What to know of this processor, if ONNX Runtime computes the file otherwise here than elsewhere."""
        path = self.folder / "best.onnx"
        path.write_bytes(best.content)
        here = self.noise(path, exact_int8=False)
        if here.sqnr >= best.noise.sqnr - _SEEN:
            return []
        return [
            f"on this processor, which lacks VNNI, ONNX Runtime's sums of int8 products saturate ({here.sqnr:.1f} dB), "
            f"unless its session configuration has {EXACT_INT8}=1, as in this check; ARM and x86 with VNNI are exact"
        ]

    def batched(self, sample: Inputs) -> Inputs:
        """A sample as often as the file takes it at once."""
        return resized(sample, self.form.batch or (1 if self.form.dynamic_batch else len(self.inputs[0])))

    def fused(self, content: bytes) -> tuple[int, int]:
        """How many layers ONNX Runtime computes in integers, and how many there are."""
        options = session_options()
        options.optimized_model_filepath = str(self.folder / "optimized.onnx")
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        left = onnx.load(options.optimized_model_filepath, load_external_data=False).graph.node
        layers = sum(node.op_type in LAYERS for node in onnx.load_model_from_string(content).graph.node)
        return layers - sum(node.op_type in (*LAYERS, "FusedConv", "FusedGemm", "FusedMatMul") for node in left), layers


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Samples, one by one, by the names of the file's inputs."""

    def __init__(self, names: Sequence[str], samples: Sequence[Inputs]) -> None:
        self._left = iter([{n: x.numpy() for n, x in zip(names, one, strict=True)} for one in samples])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def noise_of(outputs: Sequence[list[Tensor]], expected: Sequence[list[Tensor]]) -> OnnxNoise:
    """Outputs of a file, sample by sample, against PyTorch's at batch 1."""
    least, low, votes = [], [], []
    for ours, theirs in zip(zip(*outputs, strict=True), zip(*expected, strict=True), strict=True):
        pairs = [(y[: len(x)].double().numpy(), x.double().numpy()) for y, x in zip(ours, theirs, strict=True)]
        least.append(sqnr(*map(np.stack, zip(*pairs, strict=True))))
        low.append(min(sqnr(y, x) for y, x in pairs))
        if theirs[0].ndim > 1 and theirs[0].shape[-1] > 1:
            votes.append(float(np.mean([np.mean(y.argmax(-1) == x.argmax(-1)) for y, x in pairs])))
    return OnnxNoise(min(least), min(low), min(votes, default=None))
