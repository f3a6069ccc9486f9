"""Networks in TensorFlow with what the checks of a ``.tflite`` file must know: branches, scratch memory, odd sizes."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf
from tests.exporters.to_tflite.small_tflite import converted

_random = np.random.default_rng(0)


def _weight(*shape: int) -> np.ndarray:
    return (0.3 * _random.standard_normal(shape)).astype(np.float32)


_stem, _expand, _depthwise, _project = (
    _weight(3, 3, 3, 8),
    _weight(1, 1, 8, 24),
    _weight(3, 3, 24, 1),
    _weight(1, 1, 24, 8),
)
_narrow, _wide, _transposed = _weight(1, 1, 3, 5), _weight(3, 3, 3, 12), _weight(3, 3, 4, 3)
_bias, _head, _query = _weight(8), _weight(8, 5), _weight(1, 16, 16)


def mobile(x: tf.Tensor) -> tf.Tensor:
    """An inverted residual block; layers are ``stem``, ``expand``, ``depthwise``, ``project``, ``sum``, ``head``."""
    x = tf.nn.relu6(tf.nn.conv2d(x, _stem, 2, "SAME", name="stem") + _bias)
    y = tf.nn.relu6(tf.nn.conv2d(x, _expand, 1, "SAME", name="expand"))
    y = tf.nn.relu6(tf.nn.depthwise_conv2d(y, _depthwise, (1, 1, 1, 1), "SAME", name="depthwise"))
    y = tf.add(tf.nn.conv2d(y, _project, 1, "SAME", name="project"), x, name="sum")
    return tf.linalg.matmul(tf.reduce_mean(y, (1, 2)), _head)


def branches(x: tf.Tensor) -> tf.Tensor:
    """Two branches of different length that are joined, a pad, pools, a softmax."""
    y = tf.nn.relu(tf.nn.conv2d(x, _narrow, 1, "SAME"))
    z = tf.nn.max_pool2d(tf.nn.relu(tf.nn.conv2d(x, _wide, 1, "SAME")), 3, 1, "SAME")
    y = tf.nn.avg_pool2d(tf.pad(tf.concat([y, z], -1), [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 2, "VALID")
    return tf.nn.softmax(tf.reshape(y, (1, -1)))


def scratch(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Kernels that ask for memory of their own; two outputs."""
    y = tf.nn.conv2d_transpose(x, _transposed, (1, 10, 14, 4), 2, "SAME")
    return tf.reduce_max(y, (1, 2)), tf.reduce_sum(y, 3)


def attention(x: tf.Tensor) -> tf.Tensor:
    """Attention and a mean over the last axis, on a sequence."""
    weights = tf.nn.softmax(tf.linalg.matmul(tf.linalg.matmul(x, _query), x, transpose_b=True))
    y = tf.linalg.matmul(weights, x) + x
    return y - tf.reduce_mean(y, -1, keepdims=True)


def samples(shape: tuple[int, ...]) -> list[tuple[np.ndarray, ...]]:
    """The noise that `small_tflite` calibrates on, so that nothing is clipped."""
    random = np.random.default_rng(1)
    return [((1 + random.standard_normal(shape)).astype(np.float32),) for _ in range(4)]


NETWORKS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "mobile": (mobile, (1, 17, 13, 3)),
    "branches": (branches, (1, 9, 7, 3)),
    "scratch": (scratch, (1, 5, 7, 3)),
    "attention": (attention, (1, 6, 16)),
}
"""Functions and the shapes of their inputs, by name."""


@cache
def network(name: str, *, int8: bool = True) -> bytes:
    """The file of one of ``NETWORKS``; made once a process."""
    function, shape = NETWORKS[name]
    return converted(function, shape, int8=int8)
