import numpy as np
import pytest

from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf
from nbcompile.exporters.to_tflite.run.interpreters import tensors
from nbcompile.exporters.to_tflite.run.kernels import KernelDifference, kernel_differences
from nbcompile.exporters.to_tflite.run.one_operator import OperatorByOperator
from tests.exporters.to_tflite.networks_tflite import NETWORKS, network, samples
from tests.exporters.to_tflite.small_tflite import converted


@pytest.mark.parametrize("name", ["mobile", "branches", "attention"])
def test_interpreters_differ_by_one_step_an_operator_at_most(name: str) -> None:
    _, shape = NETWORKS[name]
    content = network(name)
    rows = kernel_differences(content, samples(shape), kernels=("xnnpack", "reference", "micro"))
    assert len(rows) == 3 * len(read_file(content).ops)
    assert all(row.inside for row in rows)
    values = 4 * sum(np.prod(read_file(content).tensors[op.outputs[0]].shape) for op in read_file(content).ops)
    assert sum(sum(row.apart.values()) for row in rows) == 3 * values


def test_a_kernel_that_is_wrong_is_named() -> None:
    """LiteRT's reference kernel of an int8 SUM does not rescale: a real bug, of version 2.3."""
    content = converted(lambda x: tf.reduce_sum(tf.nn.relu(x), 2), (1, 5, 40))
    names = {read_file(content).tensors[op.outputs[0]].name: op.name.lower() for op in read_file(content).ops}
    rows = kernel_differences(content, samples((1, 5, 40)), kernels=("reference", "micro"), layers=names)
    assert [(row.layer, row.op, row.kernels) for row in rows if not row.inside] == [("sum", "SUM", "reference")]


def test_more_than_one_step_is_too_much() -> None:
    assert KernelDifference("a", "ADD", "micro", {0: 99, 1: 7}).inside
    assert not KernelDifference("a", "ADD", "micro", {0: 99, 2: 1}).inside


def test_float_results_are_left_out() -> None:
    content = network("mobile", int8=False)
    assert kernel_differences(content, samples((1, 17, 13, 3))) == ()


def test_an_operator_by_itself_gives_what_it_gives_in_the_network() -> None:
    content = converted(lambda x: tf.nn.relu(x) * tf.nn.relu(x) + x, (1, 7, 5), int8=False)  # one tensor, read twice
    parts = OperatorByOperator(content)
    (kept,) = tensors(content, samples((1, 7, 5))[:1], kernels="builtin")
    for op in parts.file.ops:
        (y,) = parts.start(op, "builtin").run(kept)
        np.testing.assert_array_equal(y, kept[op.outputs[0]])


def test_constants_of_an_operator_can_be_exchanged() -> None:
    parts = OperatorByOperator(converted(lambda x: x @ np.eye(3, dtype=np.float32), (1, 3), int8=False))
    (op,) = parts.file.ops
    x = np.array([[1.0, 2.0, 3.0]], np.float32)
    weight = parts.file.tensors[op.inputs[1]]
    (y,) = parts.start(op, "builtin", {weight.index: np.full((3, 3), 2.0, np.float32)}).run({op.inputs[0]: x})
    np.testing.assert_array_equal(y, [[12.0, 12.0, 12.0]])
