"""Random int8 files of what is computed in strips: odd sizes, strides, padding, residuals; same number, same file."""

import random
from functools import cache

import numpy as np

from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf
from tests.exporters.to_tflite.small_tflite import converted


@cache
def chain_file(seed: int, int8: bool = True) -> bytes:
    """A file of five to ten steps on a map of 13 to 21 rows."""
    rng = random.Random(seed)
    values = np.random.default_rng(seed)
    shape = (1, rng.randint(13, 21), rng.randint(7, 14), rng.choice((2, 3)))
    steps = [_step(rng, values) for _ in range(rng.randint(5, 10))]

    def call(x: tf.Tensor) -> tf.Tensor:
        for step in steps:
            x = step(x)
        return tf.reduce_mean(x, (1, 2)) if seed % 3 else x

    return converted(call, shape, int8=int8)


def _step(rng: random.Random, values: np.random.Generator):  # type: ignore[no-untyped-def]
    kind = rng.choice(("conv", "conv", "depthwise", "padded", "residual", "residual", "act", "pool", "gate", "const"))
    side, stride, width = rng.choice((1, 3, 3, 5)), rng.choice((1, 1, 2)), rng.choice((3, 4, 6))
    seed = int(values.integers(1 << 30))
    act = rng.choice((tf.nn.relu, tf.nn.relu6, tf.identity))

    def weight(*shape: int) -> np.ndarray:
        drawn = np.random.default_rng(seed).standard_normal(shape) / np.prod(shape[:3]) ** 0.5
        return drawn.astype(np.float32)

    def conv(x: tf.Tensor, width: int, side: int, stride: int = 1, padding: str = "SAME") -> tf.Tensor:
        return tf.nn.conv2d(x, weight(side, side, x.shape[-1], width), stride, padding)

    def step(x: tf.Tensor) -> tf.Tensor:
        high = min(x.shape[1:3]) > 6
        if kind == "conv":
            return act(conv(x, width, side, stride if high else 1))
        if kind == "depthwise":
            strides = (1, *(2 * (stride if high else 1,)), 1)
            return act(tf.nn.depthwise_conv2d(x, weight(side, side, x.shape[-1], 1), strides, "SAME"))
        if kind == "padded" and high:
            return act(conv(tf.pad(x, ((0, 0), (1, 0), (2, 1), (0, 0))), width, 3, stride, "VALID"))
        if kind == "residual":
            return act(conv(act(conv(x, width, 3)), x.shape[-1], side) + x)
        if kind == "pool" and high:
            return tf.nn.max_pool2d(x, 2, stride, "VALID")
        if kind == "gate":
            return x * tf.sigmoid(conv(x, x.shape[-1], 1))
        return x + weight(x.shape[-1]) if kind == "const" else act(x)

    return step
