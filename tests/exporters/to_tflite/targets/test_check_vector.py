"""The check vector: what is chosen, what the C of it does, and what it finds."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf
from nbcompile.exporters.to_tflite.run.interpreters import fitted, run_file
from nbcompile.exporters.to_tflite.targets import check_vector as module
from nbcompile.exporters.to_tflite.targets import micro_check
from nbcompile.exporters.to_tflite.targets.check_vector import CheckVector, check_vector, most_telling, repeated, table
from nbcompile.exporters.to_tflite.targets.micro_check import checksum, kept_step
from nbcompile.exporters.to_tflite.targets.micro_sources import sources
from tests.exporters.to_tflite.small_tflite import converted, tiny
from tests.exporters.to_tflite.targets.test_micro_sources import needs_compiler

MEAN, STD = np.array([[0.485], [0.456], [0.406]]), np.array([[0.229], [0.224], [0.225]])
PIXELS = ((np.arange(256) / 255 - MEAN) / STD).astype(np.float32)

C = """
#include <stdio.h>
#include "tiny_check.h"
static tiny_input_0_t input[TINY_INPUT_0_ELEMENTS];
static tiny_output_0_t output[TINY_OUTPUT_0_ELEMENTS];
int main(void) {
  size_t first = 99;
  const bool filled = tiny_check_fill_0(input);
  fread(output, 1, sizeof(output), stdin);
  const size_t wrong = tiny_check_wrong_0(output, &first);
  printf("%d %d %d", (int)filled, (int)wrong, (int)first);
  return 0;
}
"""


def in_c(folder: Path, content: bytes, vector: CheckVector, *outputs: np.ndarray) -> list[list[int]]:
    """Whether C fills the input as Python does, how many of the outputs it finds wrong, and the first of them."""
    for name, text in sources(content, "tiny", 5000, vector=vector).items():
        (folder / name).write_text(text)
    (folder / "use.c").write_text(C)
    flags = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-fsanitize=undefined", "-Wno-unused-result"]
    subprocess.run(["g++", "-c", "tiny.cc"], cwd=folder, check=True)
    subprocess.run(["gcc", *flags, "use.c", "tiny.o", "-o", "use"], cwd=folder, check=True)
    runs = [subprocess.run([folder / "use"], input=y.tobytes(), capture_output=True, check=True) for y in outputs]
    return [[int(number) for number in run.stdout.split()] for run in runs]


def images(count: int) -> list[tuple[np.ndarray, ...]]:
    """Images in float, as the network takes them; with values between those of two bytes."""
    pixels = np.random.default_rng(3).uniform(0, 255, (count, 1, 17, 13, 3))
    return [(((x / 255 - MEAN[:, 0]) / STD[:, 0]).astype(np.float32),) for x in pixels]


def test_what_is_expected_is_what_tflite_micro_gives() -> None:
    content, samples = tiny(), images(3)
    vector = check_vector(content, samples)
    (given,) = (one.value for one in vector.inputs)
    (expected,) = run_file(content, [(given,)], kernels="micro", raw=True)
    assert np.array_equal(vector.outputs[0], expected[0])
    assert vector.steps == 0
    assert any(np.array_equal(given, fitted(read_file(content), sample)[0]) for sample in samples)


def test_the_sample_that_tells_most_is_taken() -> None:
    """An output of one value for every element would be right for many a fault."""
    content = converted(lambda x: x * 2.0, (1, 5, 7))
    flat, varied = np.full((1, 5, 7), 0.5, np.float32), np.linspace(-1, 1, 35, dtype=np.float32).reshape(1, 5, 7)
    vector = check_vector(content, [(flat,), (varied,), (flat,)])
    assert np.array_equal(vector.inputs[0].value, fitted(read_file(content), (varied,))[0])


@pytest.mark.parametrize("io", [tf.int8, tf.float32])
def test_an_image_is_kept_as_its_bytes(io: tf.DType) -> None:
    content = tiny(io=io)
    tensor = read_file(content).tensors[read_file(content).inputs[0]]
    image = np.random.default_rng(1).integers(0, 256, tensor.shape, dtype=np.uint8)
    image.ravel()[:256] = np.arange(256)
    x = PIXELS[np.arange(3), image]
    vector = check_vector(content, [(x,)], PIXELS)
    assert np.array_equal(vector.inputs[0].kept, image)
    assert np.array_equal(vector.inputs[0].value, tensor.quantized(x))


def test_the_table_is_the_files_own_rounding() -> None:
    """Where values lie in the middle between two steps, too: 25 × 1.02 is 25.5."""
    content = tiny()
    tensor = read_file(content).tensors[read_file(content).inputs[0]]
    assert tensor.quantization is not None
    ties = (np.arange(256) * 0.5 * tensor.quantization.scale[0]).astype(np.float32)
    for pixels in (PIXELS, np.stack([ties] * 3), -3 * PIXELS[::-1] + 99):
        rows = table(tensor, pixels)
        image = np.arange(256).repeat(3).reshape(1, 16, 16, 3)
        meant = tensor.quantized(pixels[np.arange(3), image])
        assert np.array_equal(rows[np.arange(3) % len(rows), image], meant)
    assert table(tensor, np.stack([ties] * 3)).shape == (1, 256)


@pytest.mark.parametrize(("shape", "times"), [((1, 17, 13, 3), 3), ((1, 1, 400, 1), 4), ((2, 7, 31), 5), ((330,), 4)])
def test_a_large_input_is_repeated(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], times: int) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    x = np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8)
    kept, found = module._kept(x)
    y = repeated(kept, found, shape)
    assert (kept.nbytes <= 100, found, y.shape) == (True, times, shape)
    every = (slice(None), slice(None, None, times), slice(None, None, times)) if len(shape) == 4 else ()
    assert np.array_equal(y[every] if every else y.ravel()[::times], kept)


@needs_compiler
@pytest.mark.parametrize(
    "kind", ["int8", "int8 image", "float", "float image", "int8 large", "int8 image large", "float large"]
)
def test_c_fills_the_input_alike_and_finds_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if "large" in kind:
        monkeypatch.setattr(module, "MOST_BYTES", 100)
    content = tiny(io=tf.float32 if "float" in kind else tf.int8)
    vector = check_vector(content, images(2), PIXELS if "image" in kind else None)
    assert (vector.inputs[0].times > 1) == ("large" in kind)
    (y,) = vector.outputs
    step = y.dtype.type(1 / 256 if "float" in kind else 1)
    one, two = y.copy(), y.copy()
    one.ravel()[3] += step if y.ravel()[3] < 100 else -step
    two.ravel()[[1, 4]] = [np.nan, np.nan] if "float" in kind else [99, 98]
    assert in_c(tmp_path, content, vector, y, one, two) == [[1, 0, 99], [1, 1, 3], [1, 2, 1]]


@needs_compiler
def test_another_preprocessing_is_found(tmp_path: Path) -> None:
    content = tiny()
    vector, other = (check_vector(content, images(1), pixels) for pixels in (PIXELS, PIXELS + 0.1))
    assert not np.array_equal(vector.of_byte, other.of_byte)
    mixed = CheckVector(vector.inputs, vector.outputs, other.of_byte, 0)
    assert in_c(tmp_path, content, mixed, vector.outputs[0]) == [[0, 0, 99]]


def test_of_a_large_output_some_elements_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_check, "MOST_BYTES", 100)
    y = np.zeros((1, 6, 10, 7), np.int8)
    assert kept_step(y) == 11  # 420 / 100 is 4.2, and 5, 6, 7, ..., 10 share divisors with 6, 10 or 7
    assert len(set(np.arange(y.size)[:: kept_step(y)] % 7)) == 7
    assert kept_step(y[0, 0]) == 1


def test_layers_in_float_may_differ_by_a_step() -> None:
    assert check_vector(converted(lambda x: tf.exp(x), (1, 5), int8=False)).steps == 1
    assert check_vector(tiny(io=tf.float32)).steps == 0


def test_of_two_classes_the_sample_that_is_least_sure_is_taken() -> None:
    sure, unsure = np.array([[122, -122]], np.int8), np.array([[-9, 9]], np.int8)
    assert most_telling([(sure,), (unsure,), (-sure,)]) == 1


def test_the_sum_is_fnv_1a() -> None:
    assert checksum(np.frombuffer(b"foobar", np.uint8)) == 0xBF9CF968  # of its authors' test vectors


def test_numbers_are_written_with_the_digits_that_give_them_back() -> None:
    x = np.array([0.1, -1e-20, 3e38, 1 / 3], np.float32)
    said = re.findall(r"[-\d.e+]+(?=f)", micro_check.c_numbers(x))
    assert np.array_equal(np.array(said).astype(np.float32), x)
