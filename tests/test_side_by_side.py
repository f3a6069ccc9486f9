"""Threads that fuse, expand and run side by side do not notice each other; afterwards torch is as it was."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys, threading, torch, nbcompile
from tests.habits.rows import HABITS

torch.set_num_threads(1)
NAMES = ("CarriesDataclass", "StarsAndSlices", "RepVggLike", "FillsDict")
rows = [row for row in HABITS if row.name in NAMES]
failures, calls = [], torch.nn.Module.__call__

def told(work):
    def run():
        for _ in range(int(sys.argv[1])):
            try:
                work()
            except Exception as error:
                failures.append(f"{type(error).__name__}: {error}".splitlines()[0])
    return threading.Thread(target=run)

def fusing(row):
    model, inputs = row.build(), row.example()
    with torch.no_grad():
        wanted = model(*inputs)
    def work():
        with torch.no_grad():
            assert near(nbcompile.fuse(model, example_input=inputs)(*inputs), wanted), "fuse: other outputs"
            giant = nbcompile.expand(model, inputs, where="all", ratio=1, preserve=True).eval()
            assert near(giant(*inputs), wanted), "expand: other outputs"
    return work

def running(row):
    model, inputs = row.build(), row.example()
    with torch.no_grad():
        wanted = model(*inputs)
    def work():
        for _ in range(20):
            with torch.no_grad():
                assert near(model(*inputs), wanted, 0), "run: other outputs"
    return work

def near(a, b, limit=1e-10):
    return float((a - b).abs().max()) <= limit

threads = [told(make(row)) for row in rows for make in (fusing, running)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
torch.nn.Linear(2, 2)(torch.randn(3, 2))
assert torch.nn.Module.__call__ is calls
assert len(threads) == 8
print(failures[:3], len(failures))
sys.exit(bool(failures))
"""


def run_side_by_side(rounds: int) -> None:
    """In a process of its own: what breaks torch would break the tests that follow."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(rounds)], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_eight_threads_fuse_expand_and_run() -> None:
    run_side_by_side(5)


@pytest.mark.slow
def test_eight_threads_fuse_expand_and_run_a_hundred_times() -> None:
    run_side_by_side(100)
