import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.errors import ExportError, UsageError
from nbcompile.core.judging.decibels import sqnr
from nbcompile.exporters.to_tflite.build import Samples, build_file
from nbcompile.exporters.to_tflite.file.flatbuffer import File, read_file
from nbcompile.exporters.to_tflite.file.options import Recipe
from nbcompile.exporters.to_tflite.file.ports import FloatModel
from nbcompile.exporters.to_tflite.file.quiet_tensorflow import quiet_tensorflow, tf
from nbcompile.exporters.to_tflite.lower.lowering import float_model
from nbcompile.exporters.to_tflite.quantize.float_layers import left_in_float, matching
from nbcompile.exporters.to_tflite.quantize.quantize import quantize
from nbcompile.exporters.to_tflite.quantize.ranges import measure_ranges
from nbcompile.exporters.to_tflite.run.interpreters import Sample, run_file
from tests.exporters.to_tflite.lowered import Net as Function


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU6(), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU()
        )
        self.mix = nn.Conv2d(16, 80, 1)
        self.head = nn.Linear(80, 24)

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        return self.head(self.mix(y + y.relu() * 0.5).mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> FloatModel:
    torch.manual_seed(0)
    return float_model(Net().eval(), (torch.randn(1, 3, 13, 11),))


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    random = np.random.default_rng(0)
    return [(random.standard_normal((1, 13, 11, 3)).astype(np.float32),) for _ in range(8)]


def noise(model: FloatModel, content: bytes, samples: list[Sample], kernels: str = "xnnpack") -> float:
    """SQNR against the float file, dB."""
    found, wanted = (
        np.concatenate([y[0] for y in run_file(c, samples, kernels=kernels)]) for c in (content, model.content)
    )
    return sqnr(found, wanted)


def dtypes(file: File) -> set[str]:
    return {tensor.dtype.name for tensor in file.tensors if tensor.name}


@pytest.mark.parametrize(
    ("scheme", "least", "held"),
    [
        ("float16", 60, {"float32", "float16", "int32"}),
        ("dynamic", 38, {"float32", "int8", "int32"}),
        ("int8", 28, {"int8", "int32"}),
        ("int16x8", 40, {"int16", "int8", "int32", "int64"}),
    ],
)
def test_schemes(scheme: str, least: float, held: set[str], model: FloatModel, samples: list[Sample]) -> None:
    content = quantize(model, samples, scheme=scheme)
    assert dtypes(read_file(content)) == held
    assert noise(model, content, samples) > least
    assert left_in_float(model, content) == () or not scheme.startswith("int")
    if scheme.startswith("int"):
        assert noise(model, content, samples, "micro") > least


def test_float32_is_the_float_file(model: FloatModel) -> None:
    assert quantize(model, [], scheme="float32") is model.content


def test_the_range_of_every_tensor_is_ours(model: FloatModel, samples: list[Sample]) -> None:
    ranges = measure_ranges(model, samples)
    exact, file = read_file(model.content), read_file(quantize(model, [], ranges=ranges))
    wanted = {exact.tensors[i].name: (high - low) / 255 for i, (low, high) in ranges.kept.items()}
    found = {t.name: t.quantization.scale for t in file.tensors if t.name in wanted and t.quantization}
    assert found.keys() == wanted.keys()
    # TensorFlow gives tensors that share memory layout, such as a pad and its input, one scale: none are in Net.
    assert {name: float(scale[0]) for name, scale in found.items()} == pytest.approx(wanted, rel=1e-5)


def test_as_tensorflow_does_with_its_own_calibration() -> None:
    """On a chain of layers both find the same extremes, and so write the same integers."""
    random = np.random.default_rng(0)
    weight, given = random.standard_normal((3, 3, 2, 8)), random.standard_normal((5, 1, 9, 7, 2)).astype(np.float32)
    module = tf.Module()
    module.call = tf.function(
        lambda x: tf.nn.softmax(tf.nn.relu(tf.nn.conv2d(x, weight.astype(np.float32), 2, "SAME"))),
        input_signature=[tf.TensorSpec((1, 9, 7, 2), tf.float32)],
    )

    def convert(calibrated: bool) -> bytes:
        converter = tf.lite.TFLiteConverter.from_concrete_functions([module.call.get_concrete_function()], module)
        if calibrated:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([x] for x in given)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.int8
        with quiet_tensorflow():
            return bytes(converter.convert())

    ours = read_file(quantize(FloatModel(convert(False), (), ()), [(x,) for x in given]))
    theirs = read_file(convert(True))
    assert [op.name for op in ours.ops] == [op.name for op in theirs.ops]
    for a, b in zip(ours.tensors, theirs.tensors, strict=True):
        assert a.dtype == b.dtype
        assert (a.quantization is None) == (b.quantization is None)
        if a.quantization and b.quantization:
            np.testing.assert_allclose(a.quantization.scale, b.quantization.scale, rtol=1e-6)
            np.testing.assert_array_equal(a.quantization.zero_point, b.quantization.zero_point)


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_float_in_and_out(scheme: str, model: FloatModel, samples: list[Sample]) -> None:
    content = quantize(model, samples, scheme=scheme, io="float")
    file = read_file(content)
    assert [file.tensors[i].dtype for i in (*file.inputs, *file.outputs)] == [np.float32, np.float32]
    assert left_in_float(model, content) == ()
    assert noise(model, content, samples) > 28


def scales(content: bytes) -> dict[str, list[int]]:
    file = read_file(content)
    weights = [(op.name, file.tensors[op.inputs[1]]) for op in file.ops if op.name.endswith(("2D", "CONNECTED"))]
    return {name: len(w.quantization.scale) for name, w in weights if w.quantization}


@pytest.mark.parametrize("scheme", ["int8", "int16x8", "dynamic"])
def test_scales_per_channel_per_layer_or_per_channel_but_for_linear_layers(
    scheme: str, model: FloatModel, samples: list[Sample]
) -> None:
    depthwise = 1 if scheme == "dynamic" else 16  # too small to be worth it: see `tflite_weights.LEAST`
    every = scales(quantize(model, samples, scheme=scheme))
    assert (every["CONV_2D"], every["FULLY_CONNECTED"]) == (80, 24)
    assert every.get("DEPTHWISE_CONV_2D", 1) == depthwise
    if scheme != "int16x8":
        assert set(scales(quantize(model, samples, scheme=scheme, per_channel=False)).values()) == {1}
    some = scales(quantize(model, samples, scheme=scheme, dense_per_channel=False))
    assert (some["CONV_2D"], some["FULLY_CONNECTED"]) == (80, 1)


def test_named_layers_stay_float(model: FloatModel, samples: list[Sample]) -> None:
    content = quantize(model, samples, float_layers=["features", "head"])
    assert left_in_float(model, content) == ("features.1", "features.3", "head")
    assert noise(model, content, samples) > noise(model, quantize(model, samples), samples)
    file = read_file(content)
    assert {file.tensors[i].dtype.name for i in (*file.inputs, *file.outputs)} == {"int8"}


def test_names_match_layers_their_activations_and_modules(model: FloatModel) -> None:
    assert matching(model, ["features.0"]) == matching(model, ["features.1"]) == {"features.0"}
    assert matching(model, ["features"]) == matching(model, ["feat*"]) == {"features.0", "features.2"}
    assert matching(model, []) == frozenset()


def test_refusals(model: FloatModel, samples: list[Sample]) -> None:
    with pytest.raises(UsageError, match=r"float_layers: 'h\?' matches no layer of the network; it has features.0, fe"):
        quantize(model, samples, float_layers=["head", "h?"])
    with pytest.raises(UsageError, match=r"int16x8 cannot keep single layers in float: TensorFlow's .*; use int8"):
        quantize(model, samples, scheme="int16x8", float_layers=["head"])
    with pytest.raises(
        UsageError, match="int16x8 has weights per channel: TensorFlow's quantizer fails otherwise; use"
    ):
        quantize(model, samples, scheme="int16x8", per_channel=False)
    with pytest.raises(UsageError, match="quantize='int4' is not known; known are int8, int16x8, dynamic, float16, fl"):
        quantize(model, samples, scheme="int4")
    with pytest.raises(UsageError, match="io='uint8' is not known; known are int8, float"):
        quantize(model, samples, io="uint8")


def test_a_long_list_of_layers_is_cut(samples: list[Sample]) -> None:
    chain = nn.Sequential(*(nn.Conv2d(2, 2, 3) for _ in range(26)))
    model = float_model(chain.eval(), (torch.randn(1, 2, 60, 60),))
    with pytest.raises(UsageError, match=r"it has 0, 1, 2, .*, 23, … \(26 in all\)"):
        matching(model, ["x"])


@pytest.mark.parametrize(
    ("last", "sentence"),
    [
        ([nn.ELU()], "op: 'ELU' (layer 1); use quantize='int8', or replace it"),
        ([nn.PReLU(), nn.Conv2d(3, 3, 1), nn.PReLU()], "'PRELU' (layers 1, 3); use quantize='int8', or replace these"),
    ],
    ids=["one layer", "two layers"],
)
def test_what_tensorflow_cannot_quantize_is_said(last: list[nn.Module], sentence: str) -> None:
    model = float_model(nn.Sequential(nn.Conv2d(2, 3, 1), *last).eval(), (torch.randn(1, 2, 3, 3),))
    sample = (np.ones((1, 3, 3, 2), np.float32),)
    message = rf"^TensorFlow cannot quantize the network to int16x8: .*{re.escape(sentence)}$"
    with pytest.raises(ExportError, match=message):
        quantize(model, [sample], scheme="int16x8")


def test_a_refusal_that_names_no_operator_has_a_remedy_too(monkeypatch: pytest.MonkeyPatch, model: FloatModel) -> None:
    def refusing(self: object, *args: object) -> bytes:
        raise RuntimeError("Invalid model.\nat line 3")

    from tensorflow.lite.python.optimize import calibrator

    quantizer = type(calibrator.Calibrator(model.content)._calibrator)
    monkeypatch.setattr(quantizer, "QuantizeModel", refusing)
    sentence = "TensorFlow cannot quantize the network to int16x8: Invalid model; use quantize='int8'"
    with pytest.raises(ExportError, match=f"^{re.escape(sentence)}$"):
        quantize(model, [(np.ones((1, 13, 11, 3), np.float32),)], scheme="int16x8")


def test_where_16_bits_have_no_kernel_no_layer_can_stay_in_float() -> None:
    model = float_model(nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReflectionPad2d(1)).eval(), (torch.randn(1, 2, 3, 3),))
    sample = (np.ones((1, 3, 3, 2), np.float32),)
    content = quantize(model, [sample], scheme="int16x8")
    sentence = r"^TFLite Micro cannot run the file: .*MIRROR_PAD .*\(layer '1'; quantize='int8' may have a kernel\)$"
    with pytest.raises(ExportError, match=sentence):
        run_file(content, [sample], kernels="micro")


@pytest.mark.parametrize("micro", [False, True])
def test_a_hard_swish_in_16_bits(micro: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Hardswish(), nn.Conv2d(2, 3, 1, bias=False), nn.Hardswish()).eval()
    network[1].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])[:, :, None, None]  # exact in int8
    inputs = [(4 * torch.randn(1, 2, 5, 7),) for _ in range(20)]
    data = Samples.of(network, inputs[0], inputs[4:], inputs[:4])
    built = build_file(network, inputs[0], data, Recipe("int16x8"), micro=micro)
    file = read_file(built.content)
    assert [op.name for op in file.ops] == ["ADD", "MUL", "MUL", "CONV_2D", "ADD", "MUL", "MUL"]
    assert dtypes(file) == {"int16", "int8", "int64"}  # biases
    for kernels in ("xnnpack", "reference", "micro"):
        assert data.agreement(built.model, built.content, kernels).sqnr > 70, kernels
    assert built.model.layers.keys() <= {t.name for t in read_file(built.model.content).tensors}


def test_a_range_that_is_not_known_does_no_harm(model: FloatModel, samples: list[Sample]) -> None:
    zeros = [(np.zeros((1, 13, 11, 3), np.float32),)]
    content = quantize(model, zeros)
    found = run_file(content, samples)
    assert np.isfinite([y[0] for y in found]).all()
    assert noise(model, content, zeros) > 28


class Shares(nn.Module):
    """Of the sum over rows, which is 0 for a black image."""

    def __init__(self, repeated: bool) -> None:
        super().__init__()
        self.repeated = repeated

    def forward(self, x: Tensor) -> Tensor:
        rows = x.abs().reshape(1, 2, 2)
        total = rows.sum(1) + 1e-6
        return rows / (
            total.reshape(1, 1, 2, 1).expand(1, 2, 2, 1).reshape(1, 2, 2) if self.repeated else total[:, None]
        )


@pytest.mark.parametrize("repeated", [False, True])
def test_a_divisor_of_zero_does_not_stop_the_program(repeated: bool) -> None:
    model = float_model(Shares(repeated).eval(), (torch.ones(1, 4),))
    assert ("TILE" in {op.name for op in read_file(model.content).ops}) == repeated
    content = quantize(model, [(np.full((1, 4), value, np.float32),) for value in (-1, 0.5, 1)])
    assert "add" in left_in_float(model, content)
    for kernels in ("xnnpack",) if repeated else ("xnnpack", "micro"):  # TFLite Micro has no TILE
        black, grey = (
            run_file(content, [(np.full((1, 4), value, np.float32),)], kernels=kernels) for value in (0, 0.5)
        )
        assert np.abs(black[0][0]).max() == 0
        assert np.abs(grey[0][0] - 0.5).max() < 0.01


@pytest.mark.parametrize("factor", [1.0, 300.0])
def test_comparisons_of_wide_values_are_right(factor: float) -> None:
    """Kernels of LiteRT compare noise at a step of 1 and more, and TFLite Micro's end the process."""
    network = Function(lambda _, x: (x * factor > factor / 2) * 1.0).eval()
    model = float_model(network, (torch.randn(1, 3, 4, 5),))
    random = np.random.default_rng(0)
    given = [(random.uniform(-1, 1, (1, 4, 5, 3)).astype(np.float32),) for _ in range(4)]
    content = quantize(model, given)
    assert ("gt" in left_in_float(model, content)) == (factor > 1)
    for kernels in ("xnnpack", "micro"):
        for (x,), (y,) in zip(given, run_file(content, given, kernels=kernels), strict=True):
            sure = np.abs(x - 0.5) > 0.01  # more than a step of the input
            assert ((y > 0.5) == (x > 0.5))[sure].all(), kernels
