"""Inputs that are whole numbers: no interpreter is given a row that a table lacks."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.errors import ExportError
from nbcompile.exporters.to_tflite.comparison import FileOnDisk, drawn_numbers, why_not_run
from nbcompile.exporters.to_tflite.export import write_tflite
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.options import Limits
from nbcompile.exporters.to_tflite.lower.lowering import float_model
from nbcompile.exporters.to_tflite.memory import arrange as arranging
from nbcompile.exporters.to_tflite.memory.arrange import arrange, prove_equal
from nbcompile.exporters.to_tflite.run.drawn import drawn
from nbcompile.exporters.to_tflite.run.interpreters import run_file
from nbcompile.exporters.to_tflite.targets.check_vector import check_vector
from nbcompile.exporters.to_tflite.targets.raspberrypi import benchmark_script
from tests.exporters.to_tflite.small_tflite import tiny

ROWS = 20


class Words(nn.Module):
    """Rows of a table, and a number for each."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(ROWS, 8), nn.Linear(8, 3)

    def forward(self, words: Tensor, weight: Tensor) -> Tensor:
        return self.head((self.table(words) * weight).mean(1))  # type: ignore[no-any-return]


def words() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """The network, and samples of all rows of its table."""
    torch.manual_seed(0)
    network = Words().eval()
    return network, [(torch.randint(0, ROWS, (1, 9), dtype=torch.int32), torch.rand(1, 9, 1)) for _ in range(20)]


@pytest.fixture(scope="module")
def content() -> bytes:
    network, samples = words()
    return float_model(network, samples[0]).content


def test_what_is_drawn(content: bytes) -> None:
    file = read_file(content)
    rows, weight = drawn(file, 3)[2]
    assert (rows.dtype, set(rows.ravel())) == (np.int32, {0, 1})
    assert (weight.dtype, weight.min() < 0, len(np.unique(weight))) == (np.float32, True, 9)
    known = [(np.full((1, 9), 7 + i), np.zeros((1, 9, 1), np.float32)) for i in range(2)]
    found = drawn(file, 3, known)
    assert [set(rows.ravel()) for rows, _ in found] == [{7}, {8}, {7}]
    assert {rows.dtype for rows, _ in found} == {np.dtype(np.int32)}
    assert all(x.any() for _, x in found)
    assert not np.array_equal(drawn(file, 1)[0][1], drawn(file, 1, seed=1)[0][1])


def test_integers_of_a_scale_are_drawn_over_all_that_there_are() -> None:
    known = [(np.zeros((1, 17, 13, 3), np.int8),)]
    ((x,),) = drawn(read_file(tiny()), 1, known)
    assert (x.dtype, x.min(), x.max()) == (np.int8, -128, 127)


def test_booleans_are_both() -> None:
    model = float_model(_Chosen(), (torch.ones(1, 50, dtype=torch.bool), torch.randn(1, 50)))
    mask, _ = drawn(read_file(model.content), 1)[0]
    assert (mask.dtype, 15 < mask.sum() < 35) == (np.bool_, True)


class _Chosen(nn.Module):
    def forward(self, mask: Tensor, x: Tensor) -> Tensor:
        return torch.where(mask, x, 2 * x)


def test_memory_is_arranged_and_proved(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    _, samples = words()
    known = [(rows.numpy(), weight.numpy()) for rows, weight in samples]
    given: list[np.ndarray] = []

    def watched(content: bytes, samples: list[tuple[np.ndarray, ...]], **options: bool) -> object:
        given.extend(rows for rows, _ in samples)
        return run_file(content, samples, **options)

    monkeypatch.setattr(arranging, "run_file", watched)
    assert arrange(content, Limits(), known=known).content != content
    assert all(np.array_equal(x, known[i % 3][0]) for i, x in enumerate(given))
    assert len(given) == 12
    prove_equal(content, content)


def test_a_file_is_run_in_tflite_micro_to_be_compared(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tflite").write_bytes(content)
    file = FileOnDisk.read(tmp_path / "x.tflite")
    assert why_not_run("micro", file) == ""
    assert len(run_file(content, drawn_numbers(file.file, 4), kernels="micro")) == 4


def test_a_check_vector_without_samples(content: bytes) -> None:
    assert set(check_vector(content).inputs[0].value.ravel()) <= {0, 1}


@pytest.mark.parametrize("micro", [True, False], ids=["a microcontroller", "a Raspberry Pi"])
def test_it_is_exported(micro: bool, tmp_path: Path) -> None:
    network, samples = words()
    result = write_tflite(
        network, samples[0], tmp_path / "x.tflite", samples=samples[:14], checked=samples[14:], micro=micro,
        correct_bias="never",
    )  # fmt: skip
    assert {one.kernels for one in result.agreements} == {"xnnpack", "reference", "micro"}
    if not micro:
        done = subprocess.run(
            [sys.executable, "-I", str(tmp_path / "x_benchmark.py"), "--runs", "3"], capture_output=True, text=True
        )
        assert (done.returncode, "Ship x" in done.stdout) == (0, True), done.stderr


def test_the_script_of_a_raspberry_pi_has_rows_that_the_network_saw(content: bytes) -> None:
    """A row beyond the table stops the interpreter: the first sample is what the script is made with."""
    weight = np.ones((1, 9, 1), np.float32)
    for row in (0, ROWS - 1):
        made = benchmark_script({"a": content}, [(np.full((1, 9), row, np.int32), weight)])
        assert "RANGES = [None, (-2.0, 2.0)]" in made.splitlines()
    with pytest.raises(RuntimeError, match="gather index out of bounds"):
        benchmark_script({"a": content}, [(np.full((1, 9), ROWS, np.int32), weight)])


def test_a_row_that_is_not_there_is_refused(content: bytes) -> None:
    sample = (np.full((1, 9), ROWS, np.int32), np.ones((1, 9, 1), np.float32))
    with pytest.raises(ExportError, match=r"TFLite Micro cannot run the file: Node GATHER .* failed to invoke"):
        run_file(content, [sample], kernels="micro")
