"""Writers that are stopped, and writers that meet: what has the name is whole. NBCOMPILE_FUZZ=full is 100 of each."""

import json
import os
import signal
import subprocess
import sys
import tempfile

import pytest

from tests.fuzz.pool import ROOT, count

WHAT = ["pt", "safetensors", "onnx", "checkpoint"]


def rounds(what: str, how: str, number: int) -> list[str | None]:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "tests.fuzz.writers", what, how, str(number), str(count(100))],
            cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "interrupt"])
@pytest.mark.parametrize("what", WHAT)
def test_stopped_within_the_writing(what: str, number: signal.Signals) -> None:
    found = rounds(what, "stop", number)
    assert not any(found), "\n".join(filter(None, found))
    assert "" in found  # at least one did not come to its end


@pytest.mark.slow
@pytest.mark.parametrize("what", WHAT)
def test_five_writers_of_one_name(what: str) -> None:
    found = rounds(what, "meet", 5)
    assert not any(found), "\n".join(filter(None, found))
