from collections.abc import Callable
from typing import Any

import flatbuffers
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


def _tensor(model: Any, name: str) -> Any:
    return next(t for t in model.subgraphs[0].tensors if name in t.name.decode())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda m: setattr(m.operatorCodes[0], "builtinCode", 99_999),
            r"this \.tflite file is damaged, or newer: it has an operator of number 99999$",
        ),
        (lambda m: setattr(m.subgraphs[0].operators[0], "opcodeIndex", 50), "is damaged or not complete$"),
        (lambda m: setattr(_tensor(m, "serving"), "buffer", 5000), "is damaged: it lacks buffer 5000$"),
        (
            lambda m: setattr(_tensor(m, "serving"), "shape", np.array([1, -17, 13, 3], np.int32)),
            "tensor 'serving_default_x:0' has 4 dimensions, the least -17: it is damaged$",
        ),
        (
            lambda m: setattr(_tensor(m, "serving"), "shape", np.ones(33, np.int32)),
            "tensor 'serving_default_x:0' has 33 dimensions, the least 1: it is damaged$",
        ),
        (
            lambda m: setattr(m.buffers[m.subgraphs[0].tensors[1].buffer], "data", np.zeros(7, np.uint8)),
            r"tensor '.+' of \w+ \(.+\) has 7 bytes in the file: it is damaged$",
        ),
        (
            lambda m: setattr(m.subgraphs[0].operators[2], "inputs", np.array([777], np.int32)),
            r"is damaged: of its \d+ tensors it reads number 777$",
        ),
        (
            lambda m: setattr(m.subgraphs[0].operators[2], "outputs", np.array([-1], np.int32)),
            r"is damaged: of its \d+ tensors it reads number -1$",
        ),
        (
            lambda m: setattr(_tensor(m, "serving").quantization, "scale", np.ones(2, np.float32)),
            r"tensor 'serving_default_x:0' \(1, 17, 13, 3\) has 2 scales along axis 0: it is damaged$",
        ),
    ],
)
def test_damage_is_said(damage: Callable[[Any], None], message: str, content: bytes) -> None:
    model = unpack(content)
    damage(model)
    with pytest.raises(CheckpointError, match=message):
        read_file(pack(model))


def test_parts_that_lie_in_each_other() -> None:
    """A kilobyte can be the name of a million tensors: reading them all would fill the memory."""
    builder = flatbuffers.Builder()
    name = builder.CreateString("x" * 10_000)
    tensors = []
    for _ in range(100):
        schema.TensorStart(builder)
        schema.TensorAddName(builder, name)
        tensors.append(schema.TensorEnd(builder))
    schema.SubGraphStartTensorsVector(builder, len(tensors))
    for tensor in tensors:
        builder.PrependUOffsetTRelative(tensor)
    tensors = builder.EndVector()
    schema.SubGraphStart(builder)
    schema.SubGraphAddTensors(builder, tensors)
    graph = schema.SubGraphEnd(builder)
    schema.BufferStart(builder)
    parts = []
    for start, part in (("Subgraphs", graph), ("Buffers", schema.BufferEnd(builder))):
        getattr(schema, f"ModelStart{start}Vector")(builder, 1)
        builder.PrependUOffsetTRelative(part)
        parts.append(builder.EndVector())
    schema.ModelStart(builder)
    schema.ModelAddSubgraphs(builder, parts[0])
    schema.ModelAddBuffers(builder, parts[1])
    builder.Finish(schema.ModelEnd(builder), file_identifier=b"TFL3")
    with pytest.raises(CheckpointError, match=r"this \.tflite file is damaged: its parts lie in each other$"):
        read_file(bytes(builder.Output()))
