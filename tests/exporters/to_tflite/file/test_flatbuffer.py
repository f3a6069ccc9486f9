import numpy as np
import pytest

from nbcompile.core.errors import CheckpointError
from nbcompile.exporters.to_tflite.file.flatbuffer import Quantization, pack, read_file, schema, unpack
from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf
from nbcompile.exporters.to_tflite.run.interpreters import run_file
from tests.exporters.to_tflite.networks_tflite import network
from tests.exporters.to_tflite.small_tflite import tiny


@pytest.fixture(scope="module")
def content() -> bytes:
    return network("mobile")


def test_reads_operators_tensors_and_scales(content: bytes) -> None:
    file = read_file(content)
    assert file.size == len(content)
    assert [op.name for op in file.ops] == [
        *("CONV_2D", "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D", "ADD", "MEAN", "FULLY_CONNECTED"),
    ]
    x, weight, bias = file.operands(file.ops[0])
    assert (x.index, x.shape, x.dtype, x.data) == (file.inputs[0], (1, 17, 13, 3), np.int8, None)
    assert weight.data is not None
    assert weight.data.shape == weight.shape == (8, 3, 3, 3)
    assert weight.nbytes == 8 * 3 * 3 * 3
    assert weight.quantization is not None
    assert (len(weight.quantization.scale), weight.quantization.axis) == (8, 0)
    assert bias.dtype == np.int32
    assert bias.nbytes == 8 * 4
    assert file.writers[file.outputs[0]] is file.ops[-1]
    assert file.inputs[0] not in file.writers


def test_step_of_an_output_is_seen_through_its_dequantization() -> None:
    whole, ends, plain = read_file(tiny()), read_file(tiny(io=tf.float32)), read_file(tiny(int8=False))
    assert ends.ops[-1].name == "DEQUANTIZE"
    assert whole.step(whole.outputs[0]) == ends.step(ends.outputs[0]) == 1 / 256
    assert plain.step(plain.outputs[0]) is None


def test_quantized_and_back() -> None:
    form = Quantization(np.array([0.5], np.float32), np.array([10]), 0)
    x = np.array([0.0, 0.25, -0.25, 0.74, 1e6, -1e6])
    integers = form.integers(x, np.dtype("int8"))
    assert integers.tolist() == [10, 11, 9, 11, 127, -128]  # halves are rounded away from zero
    np.testing.assert_array_equal(form.numbers(integers), [0.0, 0.5, -0.5, 0.5, 58.5, -69.0])


def test_quantized_per_channel() -> None:
    form = Quantization(np.array([0.5, 2.0, 1.0], np.float32), np.array([0, 1, 2]), 1)
    q = form.integers(np.ones((2, 3, 4)), np.dtype("int8"))
    assert q[0, :, 0].tolist() == [2, 2, 3]
    np.testing.assert_array_equal(form.numbers(q)[1, :, 3], [1.0, 2.0, 1.0])


def test_pack_keeps_the_function_and_aligns_constants(content: bytes) -> None:
    again = pack(unpack(content))
    x = [(np.random.default_rng(0).standard_normal((1, 17, 13, 3)).astype(np.float32),)]
    np.testing.assert_array_equal(run_file(again, x, raw=True)[0][0], run_file(content, x, raw=True)[0][0])
    model = schema.Model.GetRootAs(again)
    buffers = [model.Buffers(i) for i in range(model.BuffersLength())]
    starts = [b._tab.Vector(b._tab.Offset(4)) for b in buffers if b.DataLength()]
    assert len(starts) > 5
    assert {start % 16 for start in starts} == {0}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", r"this is no \.tflite file: bytes 4 to 7 are not 'TFL3'"),
        (lambda data: b"\x89PNG\r\n\x1a\n" + data, r"this is no \.tflite file: bytes 4 to 7 are not 'TFL3'"),
        (lambda data: data[:100], r"this \.tflite file is damaged or not complete"),
        (lambda data: data[: len(data) // 2], r"this \.tflite file is damaged or not complete"),
    ],
)
def test_refuses_what_is_no_file(damage, message: str, content: bytes) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CheckpointError, match=message):
        read_file(damage(content))


def test_refuses_control_flow(content: bytes) -> None:
    model = unpack(content)
    model.subgraphs.append(model.subgraphs[0])
    with pytest.raises(CheckpointError, match=r"the \.tflite file has 2 graphs \(control flow\); only one can be read"):
        read_file(pack(model))


def test_refuses_a_type_that_is_not_written(content: bytes) -> None:
    model = unpack(content)
    model.subgraphs[0].tensors[0].type = schema.TensorType.COMPLEX64
    with pytest.raises(
        CheckpointError, match=r"tensor 'serving_default_x:0' has type 8 of the schema, which nbcompile does not write"
    ):
        read_file(pack(model))
