"""Small ``.tflite`` files for tests, made by TensorFlow alone."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf


def converted(
    function: Callable[..., Any], *shapes: tuple[int, ...], int8: bool = True, io: tf.DType = tf.int8
) -> bytes:
    """``function`` of float32 tensors of ``shapes``, quantized to int8 on noise unless ``int8`` is False."""
    module = tf.Module()
    module.call = tf.function(function, input_signature=[tf.TensorSpec(shape, tf.float32) for shape in shapes])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.call.get_concrete_function()], module)
    if int8:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: _noise(shapes)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = io
    content: bytes = converter.convert()
    return content


@cache
def tiny(*, int8: bool = True, io: tf.DType = tf.int8) -> bytes:
    """A convolution, a pool, a softmax on 17 x 13 x 3: five kinds of operators with their helpers, odd sizes."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((3, 3, 3, 4)).astype(np.float32)
    head = random.standard_normal((4, 5)).astype(np.float32)

    def call(x: tf.Tensor) -> tf.Tensor:
        y = tf.nn.relu6(tf.nn.conv2d(x, weight, 2, "SAME", name="features"))
        return tf.nn.softmax(tf.linalg.matmul(tf.reduce_mean(y, (1, 2)), head))

    return converted(call, (1, 17, 13, 3), int8=int8, io=io)


def _noise(shapes: tuple[tuple[int, ...], ...]) -> Iterator[list[np.ndarray]]:
    """Around 1, so that zero points are far from 0."""
    random = np.random.default_rng(1)
    for _ in range(4):
        yield [(1 + random.standard_normal(shape)).astype(np.float32) for shape in shapes]
