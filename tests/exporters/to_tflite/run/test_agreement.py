from math import inf, nan

import numpy as np
import pytest

from nbcompile.core.errors import PreconditionError
from nbcompile.core.judging.decibels import ratio_in_decibels, sqnr
from nbcompile.exporters.to_tflite.file.flatbuffer import pack, read_file, unpack
from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf
from nbcompile.exporters.to_tflite.run.agreement import compared, standard_error
from nbcompile.exporters.to_tflite.run.interpreters import KERNELS, Sample
from tests.exporters.to_tflite.networks_tflite import mobile, network, samples, scratch
from tests.exporters.to_tflite.small_tflite import converted

SAMPLES = samples((1, 17, 13, 3))
EXPECTED: list[Sample] = [(mobile(tf.constant(x)).numpy(),) for (x,) in SAMPLES]


@pytest.fixture(scope="module")
def content() -> bytes:
    return network("mobile")


def test_sqnr_in_decibels() -> None:
    x = np.array([3.0, -4.0])
    assert sqnr(x, x) == inf
    assert sqnr(x * 1.1, x) == pytest.approx(20.0)
    assert sqnr(np.zeros(2), x) == 0.0
    assert sqnr(x, np.zeros(2)) == -inf
    assert sqnr(np.zeros(2), np.zeros(2)) == inf
    assert sqnr(np.array([nan, 1.0]), x) == -inf
    big = np.array([1e30, 3e30], np.float32)  # squares overflow float32
    assert sqnr(big * np.float32(1.1), big) == pytest.approx(20.0, abs=1e-4)


@pytest.mark.parametrize("kernels", KERNELS)
def test_int8_agrees(kernels: str, content: bytes) -> None:
    found = compared(content, SAMPLES, EXPECTED, kernels=kernels)
    assert (found.kernels, found.samples) == (kernels, 4)
    assert 30 < found.sqnr < 60
    assert found.max_lsb is not None
    assert found.mean_lsb is not None
    assert found.mean_lsb < found.max_lsb < 6
    assert found.top1 == 1.0


def test_float_agrees_and_has_no_steps() -> None:
    found = compared(network("mobile", int8=False), SAMPLES, EXPECTED)
    assert found.sqnr > 100
    assert (found.max_lsb, found.mean_lsb, found.top1) == (None, None, 1.0)


def test_steps_and_top1_are_counted(content: bytes) -> None:
    file = read_file(content)
    step = file.step(file.outputs[0])
    assert step is not None
    shifted = [(y + 10 * step,) for (y,) in EXPECTED]
    found, exact = compared(content, SAMPLES, shifted), compared(content, SAMPLES, EXPECTED)
    assert found.mean_lsb == pytest.approx(10, abs=1)
    assert found.top1 == 1.0
    turned = [(-EXPECTED[0][0],), *EXPECTED[1:]]
    assert compared(content, SAMPLES, turned).top1 == pytest.approx(3 / 4)
    assert compared(content, SAMPLES, turned).sqnr < 10 < exact.sqnr


def test_the_worst_of_several_outputs_counts() -> None:
    content = network("scratch")
    x = samples((1, 5, 7, 3))[0][0]
    shapes = [read_file(content).tensors[i].shape for i in read_file(content).outputs]
    by_shape = {tuple(y.shape): y.numpy() for y in scratch(tf.constant(x))}
    exact = tuple(by_shape[shape] for shape in shapes)
    good = compared(content, [(x,)], [exact])
    for worse in ((exact[0] * 2, exact[1]), (exact[0], exact[1] * 2)):
        found = compared(content, [(x,)], [worse])
        assert found.sqnr == pytest.approx(6.0, abs=0.5)
        assert found.sqnr < good.sqnr


def test_one_value_has_no_top1() -> None:
    content = converted(lambda x: tf.reduce_max(x, -1, keepdims=True), (1, 4), int8=False)
    x = np.array([[1.0, 5.0, 2.0, 3.0]], np.float32)
    assert compared(content, [(x,)], [(np.array([[5.0]], np.float32),)]).top1 is None


def test_a_wrong_scale_shows(content: bytes) -> None:
    model = unpack(content)
    output = model.subgraphs[0].tensors[read_file(content).outputs[0]]
    output.quantization.scale = output.quantization.scale * np.float32(0.25)
    assert compared(pack(model), SAMPLES, EXPECTED).sqnr < 12


def test_refuses_what_does_not_fit(content: bytes) -> None:
    with pytest.raises(PreconditionError, match="0 samples and 0 outputs cannot be compared"):
        compared(content, [], [])
    with pytest.raises(PreconditionError, match="4 samples and 3 outputs cannot be compared"):
        compared(content, SAMPLES, EXPECTED[1:])
    with pytest.raises(PreconditionError, match=r"gives outputs of shape \(1, 5\); PyTorch's have \(5,\)"):
        compared(content, SAMPLES, [(y[0],) for (y,) in EXPECTED])
    with pytest.raises(PreconditionError, match=r"gives outputs of shape \(1, 5\); PyTorch's have none"):
        compared(content, SAMPLES, [()] * 4)


def test_the_standard_error_is_what_other_samples_would_give() -> None:
    """Over many draws, the error that each draw states is that by which the draws differ."""
    rng, count = np.random.default_rng(0), 15
    signal, noise = rng.gamma(4, 1, (4000, count)), rng.gamma(2, 0.01, (4000, count))
    found = [ratio_in_decibels(s.sum(), n.sum()) for s, n in zip(signal, noise, strict=True)]
    stated = [standard_error(s, n) for s, n in zip(signal[:500], noise[:500], strict=True)]
    assert np.sqrt(np.mean(np.square(stated))) == pytest.approx(np.std(found), rel=0.1)
    assert standard_error(signal[0, :1], noise[0, :1]) is None
    assert standard_error(np.ones(3), np.zeros(3)) is None
