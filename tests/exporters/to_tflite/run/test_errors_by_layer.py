import numpy as np
import pytest

from nbcompile.exporters.to_tflite.file.flatbuffer import FileTensor, Quantization, pack, read_file, unpack
from nbcompile.exporters.to_tflite.file.pairs import rounded
from nbcompile.exporters.to_tflite.file.ports import FloatModel
from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf
from nbcompile.exporters.to_tflite.run.errors_by_layer import BAND, by_layer
from nbcompile.exporters.to_tflite.run.interpreters import KERNELS
from tests.exporters.to_tflite.networks_tflite import NETWORKS, network, samples
from tests.exporters.to_tflite.small_tflite import converted

OPERATORS = ["CONV_2D", "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D", "ADD", "MEAN", "FULLY_CONNECTED"]


SAMPLES = samples((1, 17, 13, 3))


@pytest.fixture(scope="module")
def model() -> FloatModel:
    content = network("mobile", int8=False)
    file = read_file(content)
    names = {file.tensors[op.outputs[0]].name: f"{op.index}" for op in file.ops}
    return FloatModel(content, (), (), names)


@pytest.fixture(scope="module")
def content() -> bytes:
    return network("mobile")


@pytest.mark.parametrize("kernels", KERNELS)
def test_every_layer_of_a_good_file_is_in_its_band(kernels: str, model: FloatModel, content: bytes) -> None:
    rows = by_layer(model, content, SAMPLES, kernels=kernels)
    assert [row.op for row in rows] == OPERATORS
    assert [row.layer for row in rows] == [str(i) for i in range(7)]
    assert all(row.inside for row in rows)
    for row in rows:
        assert row.own is not None
        assert row.expected is not None
        assert 0.1 < row.own < 0.7  # even rounding: 0.29
        assert row.expected < row.sqnr < 60


def test_rows_tell_range_and_bytes(model: FloatModel, content: bytes) -> None:
    file = read_file(content)
    for row, op in zip(by_layer(model, content, SAMPLES[:1]), file.ops, strict=True):
        form = file.tensors[op.outputs[0]].quantization
        assert form is not None
        assert (row.step, row.zero_point) == (form.scale[0], form.zero_point[0])
        assert row.low == pytest.approx((-128 - form.zero_point[0]) * form.scale[0])
        assert row.high == pytest.approx((127 - form.zero_point[0]) * form.scale[0])
    assert by_layer(model, content, SAMPLES[:1])[0].weight_bytes == 8 * 3 * 3 * 3 + 8 * 4


@pytest.mark.parametrize("factor", [0.25, 6.0])
@pytest.mark.parametrize("wrong", [0, 2, 3, 4, 6])
def test_a_wrong_scale_of_a_result_is_named(wrong: int, factor: float, model: FloatModel, content: bytes) -> None:
    planted = unpack(content)
    tensor = planted.subgraphs[0].tensors[read_file(content).ops[wrong].outputs[0]]
    tensor.quantization.scale = tensor.quantization.scale * np.float32(factor)
    rows = by_layer(model, pack(planted), SAMPLES)
    assert [row.layer for row in rows if not row.inside] == [str(wrong)]
    first = rows[wrong]
    assert first.own is not None
    assert first.own > BAND
    assert first.expected is not None
    assert first.sqnr < first.expected


@pytest.mark.parametrize("wrong", [1, 2, 6])
def test_a_wrong_scale_of_one_channels_weights_is_named(wrong: int, model: FloatModel, content: bytes) -> None:
    planted = unpack(content)
    tensor = planted.subgraphs[0].tensors[read_file(content).ops[wrong].inputs[1]]
    scales = tensor.quantization.scale.copy()
    scales[int(np.argmax(scales))] *= 3
    tensor.quantization.scale = scales
    first = next(row for row in by_layer(model, pack(planted), SAMPLES) if not row.inside)
    assert first.layer == str(wrong)


def test_a_wrong_bias_is_named(model: FloatModel, content: bytes) -> None:
    planted = unpack(content)
    tensor = planted.subgraphs[0].tensors[read_file(content).ops[0].inputs[2]]
    bias = planted.buffers[tensor.buffer].data.view(np.int32).copy()
    bias[3] += 2000
    planted.buffers[tensor.buffer].data = bias.view(np.uint8)
    first = next(row for row in by_layer(model, pack(planted), SAMPLES) if not row.inside)
    assert first.layer == "0"


@pytest.mark.parametrize("name", ["branches", "attention"])
def test_scales_that_are_shared_or_prescribed_are_no_fault(name: str) -> None:
    _, shape = NETWORKS[name]
    model = FloatModel(network(name, int8=False), (), ())
    rows = by_layer(model, network(name), samples(shape))
    assert len(rows) > 5
    assert all(row.inside for row in rows)


def test_a_branch_whose_scale_is_set_by_the_other_is_no_fault() -> None:
    def call(x: tf.Tensor) -> tf.Tensor:
        return tf.concat([tf.reshape(tf.nn.relu(x) * 0.01, (1, 10, 2)), tf.reshape(x * 10, (1, 10, 2))], -1)

    rows = by_layer(
        FloatModel(converted(call, (1, 20), int8=False), (), ()), converted(call, (1, 20)), samples((1, 20))
    )
    assert [row.op for row in rows][-1] == "CONCATENATION"
    assert all(row.inside for row in rows)


def test_a_float_file_is_equal_to_itself(model: FloatModel) -> None:
    for row in by_layer(model, model.content, SAMPLES[:2]):
        assert row.sqnr == float("inf")
        assert (row.step, row.zero_point, row.expected, row.own, row.inside) == (None, None, None, None, True)
        assert row.low < row.high


def test_conversions_have_no_rows_and_shift_none(model: FloatModel) -> None:
    content = converted(*NETWORKS["mobile"], io=tf.float32)
    assert [op.name for op in read_file(content).ops][:: len(OPERATORS) + 1] == ["QUANTIZE", "DEQUANTIZE"]
    rows = by_layer(model, content, SAMPLES)
    assert [row.op for row in rows] == OPERATORS
    assert all(row.inside for row in rows)


def test_weights_are_rounded_as_their_integers_allow() -> None:
    values = np.array([[127.0, 0.6], [1.27, 0.013]], np.float32)
    constant = FileTensor(0, "w", (2, 2), np.dtype("float32"), None, values)

    def like(scales: int, zero: int, dtype: str = "int8") -> FileTensor:
        form = Quantization(np.ones(scales, np.float32), np.full(scales, zero), 0)
        return FileTensor(0, "w", (2, 2), np.dtype(dtype), form, values)

    np.testing.assert_allclose(rounded(constant, like(2, 0)), [[127, 1], [1.27, 0.01]], rtol=1e-6)
    np.testing.assert_allclose(rounded(constant, like(1, 0)), [[127, 1], [1, 0]], rtol=1e-6)
    step = 127 / 255
    np.testing.assert_allclose(rounded(constant, like(1, 5)), [[127, step], [3 * step, 0]], rtol=1e-6)
    assert rounded(constant, like(1, 0, "int32")) is values
