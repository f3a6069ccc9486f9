"""The smallest arena in which TFLite Micro starts and runs, looked for: it is the one that is stated."""

import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import nbcompile
from nbcompile.core.errors import ExportError
from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf
from nbcompile.exporters.to_tflite.run.arena import measure_arena
from nbcompile.exporters.to_tflite.run.interpreters import Micro
from tests.exporters.to_tflite.networks_tflite import network
from tests.exporters.to_tflite.small_tflite import converted

SEARCH = """
import os, sys, numpy as np
from tflite_micro.python.tflite_micro import runtime
content, high = sys.stdin.buffer.read(), int(sys.argv[1])
def outputs(size):
    it = runtime.Interpreter.from_bytes(content, arena_size=size)
    given = it.get_input_details(0)
    for seed in (0, 1):
        x = np.random.default_rng(seed).integers(-100, 100, given["shape"]).astype(given["dtype"])
        it.set_input(x, 0)
        it.invoke()
        yield it.get_output(0).copy()
wanted = list(outputs(high + 2**22))
def runs(size):
    child = os.fork()  # too small an arena may end the process
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            os._exit(not all(np.array_equal(a, b) for a, b in zip(outputs(size), wanted, strict=True)))
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0
low, high = 0, high // 16
assert runs(16 * high), "what is stated does not suffice"
while high - low > 1:
    middle = (low + high) // 2
    low, high = (low, middle) if runs(16 * middle) else (middle, high)
print(16 * high)
"""
"""In 16 bytes, the alignment of an arena."""


def least_that_runs(content: bytes, stated: int) -> int:
    done = subprocess.run([sys.executable, "-c", SEARCH, str(stated)], input=content, capture_output=True, check=True)
    return int(done.stdout)


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def linear(x: tf.Tensor) -> tf.Tensor:
    return tf.matmul(x, weight(32, 400)) + weight(400)


def convolution(x: tf.Tensor) -> tf.Tensor:
    return tf.nn.conv2d(x, weight(1, 1, 4, 300), 1, "SAME") + weight(300)


def depthwise(x: tf.Tensor) -> tf.Tensor:
    return tf.nn.depthwise_conv2d(x, weight(3, 3, 70, 1), (1, 1, 1, 1), "SAME")


def wide_first(x: tf.Tensor) -> tf.Tensor:
    """The layer that takes the most to prepare is not the last, which keeps the most."""
    return tf.nn.relu(tf.matmul(tf.nn.relu(linear(x)), weight(400, 9))) @ weight(9, 200)


def joined(x: tf.Tensor) -> tf.Tensor:
    return tf.concat([x, tf.nn.relu(x), tf.tanh(x), x * x, x[:, 1:4]], 1)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (linear, (1, 32)),
        (wide_first, (1, 32)),
        pytest.param(convolution, (1, 2, 3, 4), marks=pytest.mark.slow),
        pytest.param(depthwise, (1, 2, 3, 70), marks=pytest.mark.slow),
        pytest.param(joined, (1, 7), marks=pytest.mark.slow),
    ],
)
def test_small_networks_take_more_to_start(function: Callable[..., tf.Tensor], shape: tuple[int, ...]) -> None:
    content = converted(function, shape)
    arena = measure_arena(content)
    assert arena.needed is not None
    assert arena.tail is not None
    assert arena.needed > arena.head + arena.tail
    assert arena.needed <= 1.05 * least_that_runs(content, arena.needed)


@pytest.mark.parametrize("int8", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", ["mobile", *(pytest.param(x, marks=pytest.mark.slow) for x in ("attention", "branches", "scratch"))]
)
def test_what_is_stated_is_the_least(name: str, int8: bool) -> None:
    arena = measure_arena(content := network(name, int8=int8))
    assert arena.needed is not None
    assert arena.needed <= 1.01 * least_that_runs(content, arena.needed)


def test_too_small_an_arena_is_no_fault_of_a_layer() -> None:
    content = converted(linear, (1, 32))
    with pytest.raises(ExportError, match="with 6,000 B of arena cannot run the file: ") as refused:
        Micro(content, 6000)
    assert "float_layers" not in str(refused.value)


class Autoencoder(nn.Sequential):
    """MLPerf Tiny's anomaly detection (Banbury et al. 2021)."""

    def __init__(self) -> None:
        sizes = [640, *[128] * 4, 8, *[128] * 4, 640]
        layers: list[nn.Module] = []
        for last, (a, b) in enumerate(pairwise(sizes), 2 - len(sizes)):
            layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b), nn.ReLU()] if last else [])]
        super().__init__(*layers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "shape"),
    [(lambda: nn.Linear(32, 400), (32,)), (Autoencoder, (640,)), (lambda: nbcompile.zoo.dscnn(), (1, 8, 8))],
)
def test_a_user_gets_what_is_stated(make: Callable[[], nn.Module], shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, calibration = make().eval(), torch.randn(16, *shape)
    x = torch.randn(1, *shape)
    result = nbcompile.export(model, tmp_path / "tiny.tflite", x, target="mcu", calibration=calibration, min_sqnr=-10)
    header = (tmp_path / "tiny.h").read_text()
    *for_helium, stated = map(int, re.findall(r"define TINY_ARENA_BYTES (\d+)", header))
    assert result.arena.needed <= stated <= max([stated, *for_helium])
    assert stated <= 1.05 * least_that_runs((tmp_path / "tiny.tflite").read_bytes(), stated)
