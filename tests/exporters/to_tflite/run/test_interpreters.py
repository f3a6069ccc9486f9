import os
import sys

import numpy as np
import pytest

from nbcompile.core.errors import ExportError, PreconditionError, UsageError
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf
from nbcompile.exporters.to_tflite.file.stderr import stderr_kept
from nbcompile.exporters.to_tflite.run.interpreters import KERNELS, Micro, load_file, run_file, tensors
from tests.exporters.to_tflite.networks_tflite import mobile, network
from tests.exporters.to_tflite.small_tflite import converted

SAMPLE = (1 + np.random.default_rng(3).standard_normal((1, 17, 13, 3)).astype(np.float32),)


@pytest.fixture(scope="module")
def content() -> bytes:
    return network("mobile")


@pytest.mark.parametrize("kernels", KERNELS)
def test_float_file_gives_tensorflows_numbers(kernels: str) -> None:
    plain = network("mobile", int8=False)
    (y,) = run_file(plain, [SAMPLE], kernels=kernels)
    assert y[0].dtype == np.float32
    np.testing.assert_allclose(y[0], mobile(tf.constant(SAMPLE[0])), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernels", KERNELS)
def test_int8_file_takes_and_gives_numbers_or_integers(kernels: str, content: bytes) -> None:
    x, output = (
        read_file(content).tensors[read_file(content).inputs[0]],
        read_file(content).tensors[read_file(content).outputs[0]],
    )
    ((numbers,),) = run_file(content, [SAMPLE], kernels=kernels)
    ((integers,),) = run_file(content, [(x.quantized(SAMPLE[0]),)], kernels=kernels, raw=True)
    assert integers.dtype == np.int8
    np.testing.assert_array_equal(numbers, output.dequantized(integers))
    np.testing.assert_allclose(numbers, mobile(tf.constant(SAMPLE[0])), atol=4 * output.quantization.scale[0])


def test_reference_kernels_and_tflite_micro_agree_to_the_bit(content: bytes) -> None:
    left, right = (next(tensors(content, [SAMPLE], kernels=kernels)) for kernels in ("reference", "micro"))
    assert left.keys() == right.keys()
    for index, values in left.items():
        np.testing.assert_array_equal(values, right[index])


@pytest.mark.parametrize("kernels", KERNELS)
def test_all_tensors_are_kept(kernels: str, content: bytes) -> None:
    file = read_file(content)
    first, second = tensors(content, [SAMPLE, (SAMPLE[0] + 1,)], kernels=kernels)
    assert set(first) == {*file.inputs, *file.writers}
    assert all(values.shape == file.tensors[index].shape for index, values in first.items())
    stem = file.ops[0].outputs[0]
    assert first[stem].any()
    assert (first[stem] != second[stem]).any()  # no view of what the next run overwrites
    ((last,),) = run_file(content, [SAMPLE], kernels=kernels, raw=True)
    assert np.abs(first[file.outputs[0]].astype(int) - last).max() <= 2  # XNNPACK may merge operators


def test_several_inputs_in_the_order_of_the_file() -> None:
    content = converted(lambda x, y: x - 2 * y, (1, 3), (1, 3), int8=False)
    names = [read_file(content).tensors[i].name for i in read_file(content).inputs]
    values = {name: np.full((1, 3), i, np.float32) for i, name in enumerate(sorted(names))}
    for kernels in KERNELS:
        ((y,),) = run_file(content, [tuple(values[name] for name in names)], kernels=kernels)
        np.testing.assert_array_equal(y, [[-2, -2, -2]])


def test_a_network_whose_kernels_keep_copies_of_tensors_gets_the_arena_for_them() -> None:
    shape = (1, 64, 64)  # a product keeps transposed copies in the arena
    content = converted(lambda x: x @ x @ x @ x @ x @ x @ x @ x, shape, int8=False)
    ((y,),) = run_file(content, [(np.eye(64, dtype=np.float32)[None],)], kernels="micro")
    np.testing.assert_array_equal(y[0], np.eye(64))


def test_refuses_unknown_kernels(content: bytes) -> None:
    with pytest.raises(UsageError, match="kernels 'cuda' are unknown; known are xnnpack, builtin, reference, micro"):
        run_file(content, [SAMPLE], kernels="cuda")


@pytest.mark.parametrize(
    ("sample", "has"), [((SAMPLE[0][:, :9],), r"\(1, 9, 13, 3\)"), ((), "none"), (SAMPLE * 2, r"\(1, 17, 13, 3\), \(")]
)
def test_refuses_a_sample_that_does_not_fit(sample: tuple[np.ndarray, ...], has: str, content: bytes) -> None:
    with pytest.raises(PreconditionError, match=rf"takes inputs of shape \(1, 17, 13, 3\); the sample has {has}"):
        run_file(content, [sample])


def test_says_what_tflite_micro_lacks() -> None:
    content = converted(tf.nn.gelu, (1, 4), int8=False)
    with pytest.raises(
        ExportError, match=r"^TFLite Micro .*cannot run the file: Didn't find op for builtin opcode 'GELU'"
    ):
        load_file(content, "micro")


def test_says_what_fails_only_when_it_runs() -> None:
    content = converted(lambda x: tf.sqrt(tf.abs(x)), (1, 4))
    file = read_file(content)
    ((layer, dtype),) = (
        (file.tensors[op.outputs[0]].name, file.tensors[op.outputs[0]].dtype) for op in file.ops if op.name == "SQRT"
    )
    if dtype == np.float32:
        pytest.skip("TensorFlow before 2.21 leaves it in float, which TFLite Micro has")
    sentence = (
        rf"^TFLite Micro cannot run the file: .*INT8 != FLOAT32.*Node SQRT .*\(layer '{layer}'; float_layers=… keeps"
    )
    with pytest.raises(ExportError, match=sentence):
        run_file(content, [(np.ones((1, 4), np.float32),)], kernels="micro")


def test_says_what_litert_lacks() -> None:
    content = converted(tf.nn.elu, (1, 4))
    with pytest.raises(ExportError, match=r"^LiteRT \(reference\) cannot run the file: Didn't find op for .*'ELU'"):
        load_file(content, "reference")


def test_refuses_an_arena_that_is_too_small(capfd: pytest.CaptureFixture[str]) -> None:
    content = converted(tf.nn.relu, (1, 400), int8=False)
    capfd.readouterr()  # the converter's own
    with pytest.raises(ExportError, match=r"^TFLite Micro with 3,200 B of arena cannot run the file: Failed to resize"):
        Micro(content, 3200)
    assert capfd.readouterr().err == ""


def test_stderr_is_kept_from_the_terminal_and_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    with stderr_kept() as said:
        os.write(2, b"from C++\n")
        print("from Python", file=sys.stderr, flush=True)
        assert said().startswith("from C++\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err.endswith("after\n")


def test_stderr_is_given_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with stderr_kept():
            os.write(2, b"hidden\n")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    os.write(2, b"shown\n")
    assert capfd.readouterr().err == "shown\n"
