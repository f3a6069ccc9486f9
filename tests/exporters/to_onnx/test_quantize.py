"""int8 ``.onnx``: QDQ by ONNX Runtime's quantizer, corrected biases, what is refused, and ``verify`` of such files."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nbcompile
from nbcompile.core.errors import ExportError, UsageError, VerificationError
from nbcompile.core.numerics import relative_error
from nbcompile.deploy.corrected_biases import with_corrected_biases
from nbcompile.exporters.to_onnx.check import onnx_outputs
from nbcompile.exporters.to_onnx.file import onnx_quantized
from nbcompile.exporters.to_onnx.layers import onnx_layers
from nbcompile.exporters.to_onnx.quantize import QuantizedOnnx, noise_of
from nbcompile.testing import scramble_
from tests.slow import one_in


class Residual(nn.Module):
    """A map that two layers read, a strided layer, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.down = nn.Conv2d(8, 16, 3, 2, 1)
        self.shortcut = nn.Conv2d(8, 16, 1, 2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        y = (y + self.body(y)).relu()
        out: Tensor = self.head((self.down(y).relu() + self.shortcut(y)).mean((2, 3)))
        return out


def residual() -> nn.Module:
    torch.manual_seed(0)
    return scramble_(Residual()).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(48, 3, 7, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, images: Tensor) -> QuantizedOnnx:
    path = tmp_path_factory.mktemp("int8") / "tiny.onnx"
    result = nbcompile.export(residual(), path, images[:1], quantize="int8", calibration=images, equalize="never")
    assert isinstance(result, QuantizedOnnx)
    return result


def test_it_is_qdq_that_onnx_runtime_computes_in_integers(written: QuantizedOnnx) -> None:
    graph = onnx.load(written.path).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") >= 5
    assert kinds.count("Conv") == 4  # ReLUs are in the ranges
    assert "Relu" not in kinds
    weights = {x.name: tuple(x.dims) for x in graph.initializer if x.data_type == onnx.TensorProto.INT8}
    assert weights["stem.weight_quantized"] == (8, 3, 3, 3)
    assert next(tuple(x.dims) for x in graph.initializer if x.name == "stem.weight_scale") == (8,)
    assert (written.in_integers, written.layers) == (5, 5)
    assert written.sha256
    assert written.bytes == written.path.stat().st_size
    assert any("computes 5 of 5 layers in integers" in note for note in written.notes)


def test_it_gives_what_pytorch_gives_at_any_batch(written: QuantizedOnnx, images: Tensor) -> None:
    model = residual()
    with torch.no_grad():
        expected = [[model(x[None])] for x in images]
    (together,) = onnx_outputs(written.path, [(images,)])[0]
    alone = onnx_outputs(written.path, [(x[None],) for x in images])
    assert torch.equal(together, torch.cat([y for (y,) in alone]))
    noise = noise_of(alone, expected)
    assert noise.sqnr > 25
    assert noise.top1 is not None
    assert noise.top1 > 0.9
    assert written.noise.sqnr == max(written.tried.values())
    assert written.error == pytest.approx(10 ** (-written.noise.sqnr / 20))


@pytest.mark.parametrize("saturates", one_in(2, [True, False]))
def test_what_saturates_on_this_processor_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, images: Tensor, saturates: bool
) -> None:
    """What this test runs on may have VNNI or not: the kernels that saturate are played here."""
    asked = []

    def outputs(path: Path, calls: Any, *, exact_int8: bool = True) -> Any:
        asked.append(exact_int8)
        found = onnx_outputs(path, calls)
        return (
            found if exact_int8 or not saturates else [[y.clamp(max=float(y.max()) / 2) for y in one] for one in found]
        )

    monkeypatch.setattr("nbcompile.exporters.to_onnx.quantize.onnx_outputs", outputs)
    path = tmp_path / "tiny.onnx"
    result = nbcompile.export(residual(), path, images[:1], quantize="int8", calibration=images, equalize="never")
    assert isinstance(result, QuantizedOnnx)
    assert asked.count(False) == 1
    assert result.noise.sqnr > 25
    said = [note for note in result.notes if "session.x64quantprecision=1" in note]
    assert len(said) == saturates
    pattern = r"on this processor, which lacks VNNI, ONNX Runtime's sums of int8 products saturate \(-?\d+\.\d dB\), "
    assert all(re.match(pattern, note) for note in said)


def test_sums_do_not_saturate_on_any_processor(tmp_path: Path) -> None:
    """Pairs of the largest products are more than 16 bits hold."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 4)).eval()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    x = torch.rand(40, 64) * 0.2 + 0.8
    written = nbcompile.export(model, tmp_path / "x.onnx", x[:1], quantize="int8", calibration=x, equalize="never")
    (ours,) = onnx_outputs(written.path, [(x,)])[0]
    assert relative_error(ours, model(x).detach()) < 0.01


def test_layers_keep_their_names_and_costs(written: QuantizedOnnx, images: Tensor) -> None:
    assert onnx_quantized(written.path)
    layers = onnx_layers(written.path)
    assert [layer.name for layer in layers] == ["stem", "body.0", "down", "shortcut", "head"]
    assert sum(layer.macs for layer in layers) == nbcompile.cost(residual(), images[:1]).macs
    assert [layer.params for layer in layers] == [224, 584, 1168, 144, 85]


def test_verify(written: QuantizedOnnx, images: Tensor) -> None:
    found = nbcompile.verify(residual(), written.path, images[:1], calibration=images)
    assert found.passed
    assert [check.name for check in found.checks] == ["layers", "MACs", "params", "numbers"]
    assert "on 48 calibration samples; 15.0 dB are asked for" in found.checks[-1].detail
    wrong = residual()
    with torch.no_grad():
        wrong.get_parameter("head.weight")[0] += 1.0
    with pytest.raises(VerificationError, match=r"numbers differ: .* dB of signal over noise"):
        nbcompile.verify(wrong, written.path, images[:1], calibration=images).raise_on_failure()
    assert nbcompile.verify(wrong, written.path, images[:1], numbers=False).passed
    agreed = nbcompile.verify(residual(), written.path, images[:1], inputs=[images[:1]], min_agreement=1.0)
    assert agreed.checks[-1].detail.endswith("15.0 dB are asked for, and the same largest output in 100.0%")
    with pytest.raises(UsageError, match="random inputs say little: give images"):
        nbcompile.verify(residual(), written.path, images[:1])
    with pytest.raises(UsageError, match=r"steps=1 is of integers, and .* gives floats"):
        nbcompile.verify(residual(), written.path, images[:1], steps=1)


@pytest.mark.slow
def test_a_file_of_one_batch_size_per_tensor(tmp_path: Path, images: Tensor) -> None:
    path = tmp_path / "four.onnx"
    result = nbcompile.export(
        residual(), path, images[:1], quantize="int8", calibration=images, batch=4, per_channel=False,
        equalize="always", correct_bias="always",
    )  # fmt: skip
    assert isinstance(result, QuantizedOnnx)
    assert result.chosen.endswith("biases corrected")
    assert onnx_outputs(path, [(images[:4],)])[0][0].shape == (4, 5)
    assert nbcompile.verify(residual(), path, images[:1], calibration=images).passed


def test_a_file_that_breaks_a_limit_is_not_kept(tmp_path: Path, images: Tensor) -> None:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(b"what was there")
    quick: dict[str, Any] = {"quantize": "int8", "equalize": "never", "correct_bias": "never"}
    with pytest.raises(ExportError, match=r"tiny.onnx: in ONNX Runtime the outputs have .* and 90.0 dB are asked for"):
        nbcompile.export(residual(), path, images[:1], calibration=images, min_sqnr=90, **quick)
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"quantize": "int8"}, "quantize='int8' needs a calibration set"),
        ({"quantize": "int16x8"}, "quantize='int16x8' is not of .onnx files: they have float32 and int8"),
        ({"min_sqnr": 20}, "min_sqnr of .onnx files goes with quantize='int8'"),
        ({"quantize": "int8", "calibration": torch.zeros(4, 3, 9, 9)}, "does not fit the network's input"),
        (
            {"quantize": "int8", "calibration": torch.zeros(4, 3, 7, 5), "opset": 12},
            "opset=12 has no int8 with a scale",
        ),
        ({"quantize": "int8", "calibration": torch.zeros(4, 3, 7, 5), "batch": 0}, "batch=0 is no batch size"),
        ({"quantize": "int8", "calibration": "nowhere"}, "calibration nowhere is not there"),
        ({"quantize": "int8", "sram": "64K"}, "'sram' is not an option of .onnx files"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as raised:
        nbcompile.export(residual(), tmp_path / "tiny.onnx", torch.zeros(1, 3, 7, 5), **options)
    assert sentence in str(raised.value)
    assert not any(tmp_path.iterdir())


def rounded(weight: Tensor, per_channel: bool) -> Tensor:
    largest = weight.abs().flatten(1).amax(1) if per_channel else weight.abs().max()[None]
    scale = (largest / 127).reshape(-1, *[1] * (weight.ndim - 1))
    return (weight / scale).round() * scale


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Conv2d(3, 4, 3, 2, 1), (3, 7, 5)),  # borders count
        (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 7, 5)),
        (lambda: nn.Conv1d(3, 2, 3), (3, 9)),
        (lambda: nn.Linear(6, 3), (6,)),
        (lambda: nn.Linear(6, 3), (2, 6)),
    ],
)
def test_corrected_biases_take_back_the_mean(
    make: Callable[[], nn.Module], shape: tuple[int, ...], per_channel: bool
) -> None:
    torch.manual_seed(0)
    layer = make().double()
    samples = [(1 + torch.randn(1, *shape).double(),) for _ in range(32)]
    corrected = with_corrected_biases(nn.Sequential(layer), samples, per_channel=per_channel)[0]
    assert torch.equal(corrected.weight, layer.weight)
    quantized = with_corrected_biases(nn.Sequential(layer), samples, per_channel=per_channel)[0]
    quantized.weight.data = rounded(layer.weight.data, per_channel)
    channel = -1 if isinstance(layer, nn.Linear) else 1
    with torch.no_grad():
        wanted, held = (
            torch.cat([module(x).movedim(channel, 0).flatten(1) for (x,) in samples], 1).mean(1)
            for module in (layer, quantized)
        )
    moved = corrected.bias != layer.bias
    assert moved.any()
    assert torch.allclose(held[moved], wanted[moved], rtol=0, atol=1e-12)


def test_what_may_be_chance_is_not_corrected() -> None:
    layer = nn.Linear(3, 2).double()
    one = (torch.randn(1, 3).double(),)
    opposite = (-one[0],)
    corrected = with_corrected_biases(nn.Sequential(layer), [one, opposite], per_channel=True)[0]
    assert torch.equal(corrected.bias, layer.bias)  # the mean is 0
    assert torch.equal(F.linear(*one, corrected.weight), F.linear(*one, layer.weight))
