import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nbcompile.core.errors import CheckpointError
from nbcompile.exporters.to_tflite.file.flatbuffer import pack, read_file, unpack
from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf
from nbcompile.exporters.to_tflite.targets import raspberrypi_benchmark
from nbcompile.exporters.to_tflite.targets.raspberrypi import MARK, benchmark_script
from tests.exporters.to_tflite.small_tflite import converted, tiny

NAMES = ("tiny.tflite", "tiny_float32.tflite")


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return dict(zip(NAMES, (tiny(), tiny(int8=False)), strict=True))


def write(folder: Path, files: dict[str, bytes], script: str | None = None) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    path = folder / "tiny_benchmark.py"
    path.write_text(benchmark_script(files) if script is None else script)
    return path


def run(script: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """The script as it is run on the device: without nbcompile."""
    command = [sys.executable, "-I", str(script), "--runs", "3", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_times_checks_and_advises(tmp_path: Path, files: dict[str, bytes]) -> None:
    script = write(tmp_path, files)
    assert "nbcompile.exporters" not in script.read_text()
    done = run(script, "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1:3] == [f"{name}: {len(files[name]):,} B, outputs equal to the expected ones" for name in NAMES]
    assert [line.split()[:2] for line in lines[4:8]] == [[name, threads] for threads in "14" for name in NAMES]
    found = json.loads((tmp_path / "found.json").read_text())
    assert lines[-1] == found["advice"]
    assert found["advice"].startswith("Ship tiny")
    assert [row["agreement_db"] for row in found["checks"]] == ["equal", "equal"]
    assert all(0 < row["median_ms"] <= row["p90_ms"] for row in found["times"])


def test_wrong_outputs_are_not_shipped(tmp_path: Path, files: dict[str, bytes]) -> None:
    changed = unpack(files[NAMES[0]])
    file = read_file(files[NAMES[0]])
    head = next(file.tensors[op.inputs[1]] for op in file.ops if op.name == "FULLY_CONNECTED")
    assert head.data is not None
    changed.buffers[changed.subgraphs[0].tensors[head.index].buffer].data = np.frombuffer(
        head.data[:, ::-1].tobytes(), np.uint8
    )
    other = {NAMES[0]: pack(changed), NAMES[1]: files[NAMES[1]]}
    # Written for the one file, with the digest of the other: as if the device computed something else.
    right, wrong = benchmark_script(files), benchmark_script(other)
    files_line = next(line for line in wrong.splitlines() if line.startswith("FILES = "))
    mixed = "\n".join(files_line if line.startswith("FILES = ") else line for line in right.splitlines())
    done = run(write(tmp_path, other, mixed))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[1].endswith("the expected ones: WRONG")
    assert lines[2].endswith("equal to the expected ones")
    assert lines[-1] == "Ship nothing yet: outputs are wrong on this machine."


def test_missing_and_changed_files_are_named(tmp_path: Path, files: dict[str, bytes]) -> None:
    script = write(tmp_path, files)
    (tmp_path / NAMES[0]).write_bytes(files[NAMES[1]])
    done = run(script)
    said = f"{NAMES[0]} is not the file that this script was written for: copy both again\n"
    assert (done.returncode, done.stderr) == (1, said)
    (tmp_path / NAMES[0]).unlink()
    done = run(script)
    assert (done.returncode, done.stderr) == (1, f"{NAMES[0]} is not beside this script: copy it to {tmp_path}\n")


def test_other_interpreters(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
    content, ranges = files[NAMES[0]], [(-1.0, 1.0)]
    expected = raspberrypi_benchmark.answers(content, ranges)
    monkeypatch.setattr(
        raspberrypi_benchmark, "INTERPRETERS", ("not_installed.x", "tensorflow.lite.python.interpreter")
    )
    with pytest.warns(UserWarning, match="Interpreter"):
        assert raspberrypi_benchmark.agreement(expected, raspberrypi_benchmark.answers(content, ranges)) > 40
    monkeypatch.setattr(raspberrypi_benchmark, "INTERPRETERS", ("not_installed.x",))
    with pytest.raises(SystemExit, match=r"no interpreter of \.tflite files is installed: pip install ai-edge-litert"):
        raspberrypi_benchmark.answers(content, ranges)


def test_the_same_inputs_for_float_and_for_integers(files: dict[str, bytes]) -> None:
    with_float_io = tiny(io=tf.float32)
    content, floating = files.values()
    file = read_file(content)
    low, high = file.tensors[file.inputs[0]].dequantized(np.array([-128, 127]))
    lines = benchmark_script({"a": with_float_io, "b": floating}).splitlines()
    assert f"RANGES = {[(float(low), float(high))]!r}" in lines
    assert "RANGES = [(-2.0, 2.0)]" in benchmark_script({"b": floating}).splitlines()
    # All three compute nearly the same: they got the same inputs.
    first, second, third = (
        raspberrypi_benchmark.answers(found, [(float(low), float(high))])
        for found in (content, with_float_io, floating)
    )
    assert raspberrypi_benchmark.agreement(first, second) > 40
    assert raspberrypi_benchmark.agreement(third, first) > 20


def test_large_outputs_are_thinned() -> None:
    content = converted(lambda x: x + x, (1, 100, 97, 3), int8=False)
    (found,) = raspberrypi_benchmark.answers(content, [(-1.0, 1.0)])
    assert len(found) == -(-100 * 97 * 3 // (100 * 97 * 3 // raspberrypi_benchmark.KEPT))
    assert len(benchmark_script({"a": content})) < 60_000


def test_agreement_is_that_of_the_worst_output() -> None:
    x = np.array([3.0, 4.0])
    assert raspberrypi_benchmark.agreement([x, x], [x, x]) == np.inf
    assert raspberrypi_benchmark.agreement([x, x], [x, np.array([3.0, 4.5])]) == pytest.approx(20)
    assert raspberrypi_benchmark.agreement([0 * x], [x]) == -np.inf


@pytest.mark.parametrize(
    ("times", "advice"),
    [
        ((2.0, 1.0, 4.0, 3.0), "Ship a with 4 threads: 1.000 ms. b takes 3.000 ms at best (3.00 times)."),
        ((1.04, 2.0, 1.0, 1.2), "Ship a with 1 thread: 1.040 ms. b takes 1.000 ms at best (0.96 times)."),
        ((1.06, 2.0, 1.1, 1.0), "Ship b with 4 threads: 1.000 ms. a takes 1.060 ms at best (1.06 times)."),
    ],
    ids=["faster", "nearly as fast, and smaller", "slower"],
)
def test_advice(monkeypatch: pytest.MonkeyPatch, times: tuple[float, ...], advice: str) -> None:
    monkeypatch.setattr(raspberrypi_benchmark, "FILES", {"a": ("", 30.0), "b": ("", 60.0)})
    keys = [("a", 1), ("a", 4), ("b", 1), ("b", 4)]
    assert raspberrypi_benchmark.advice(dict(zip(keys, times, strict=True))) == advice


def test_the_marks_and_bad_files() -> None:
    assert Path(raspberrypi_benchmark.__file__).read_text().count(MARK) == 2
    with pytest.raises(CheckpointError, match=r"this is no \.tflite file"):
        benchmark_script({"a": b"x"})
