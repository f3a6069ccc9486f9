"""Threads that fuse, expand and run side by side do not notice each other; afterwards torch is as it was."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nbcompile
from nbcompile.core.blocks import sites
from nbcompile.report.collect import report_on

PROGRAM = """
import sys, threading, torch, nbcompile
from nbcompile.report.collect import report_on
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
            assert len(report_on("", "", model, inputs, giant=giant).graphs) == 2
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


EXPORTS = """
import pathlib, sys, threading, torch, nbcompile
from torch import nn

failures = []

def exporting(channels):
    try:
        model = nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU()).eval()
        x, path = torch.randn(2, 3, 7, 5), pathlib.Path(sys.argv[1]) / f"{channels}.onnx"
        nbcompile.export(model, path, x)
        nbcompile.verify(model, path, x).raise_on_failure()
    except Exception as error:
        failures.append(f"{type(error).__name__}: {error}")

threads = [threading.Thread(target=exporting, args=(channels,)) for channels in (4, 5, 6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(failures)
sys.exit(bool(failures))
"""


def run_side_by_side(program: str, argument: str) -> None:
    """In a process of its own: what breaks torch would break the tests that follow."""
    done = subprocess.run(
        [sys.executable, "-c", program, argument], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_eight_threads_fuse_expand_and_run() -> None:
    run_side_by_side(PROGRAM, "2")


@pytest.mark.slow
def test_threads_that_export_wait_for_each_other(tmp_path: Path) -> None:
    """To ``torch.export`` itself they are one: it stops, or takes the one's values for the other's."""
    run_side_by_side(EXPORTS, str(tmp_path))


@pytest.mark.slow
def test_eight_threads_fuse_expand_and_run_a_hundred_times() -> None:
    run_side_by_side(PROGRAM, "100")


X = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()


def linear_giant() -> nn.Module:
    giant = nbcompile.expand(small(), X, "all").eval()
    for block in sites(giant).values():
        block.slope.fill_(1)
    return giant


def saved_and_loaded(folder: Path) -> nn.Module:
    nbcompile.save(linear_giant(), folder / "giant.pt")
    return nbcompile.load(folder / "giant.pt")


VERBS: dict[str, Callable[[Path], Any]] = {
    "report": lambda _: report_on("", "", small(), X, giant=linear_giant(), original=small()),
    "expand": lambda _: nbcompile.expand(small(), X, "all"),
    "collapse_": lambda _: nbcompile.collapse_(linear_giant()),
    "fuse sites": lambda _: nbcompile.fuse(linear_giant(), verify_each=True),
    "fuse all": lambda _: nbcompile.fuse(small(), example_input=X, verify_each=True),
    "save, load": saved_and_loaded,
    "verify": lambda _: nbcompile.verify(small(), small(), X),
    "cost": lambda _: nbcompile.cost(small(), X),
}


def patches(work: Callable[[], Any]) -> list[str]:
    """The functions that were called during ``work`` while ``nn.Module`` was not as torch made it."""
    methods = ("__call__", "__getattr__", "__setattr__")
    seen, before = [], [vars(nn.Module)[name] for name in methods]

    def look(frame: Any, event: str, _: Any) -> None:
        if event == "call" and any(vars(nn.Module)[n] is not own for n, own in zip(methods, before, strict=True)):
            seen.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")

    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(None)
    return seen


@pytest.mark.parametrize("verb", VERBS)
def test_nothing_of_torch_is_patched_meanwhile(verb: str, tmp_path: Path) -> None:
    """At no moment: what another thread runs would be caught in it."""
    assert not patches(lambda: VERBS[verb](tmp_path))


def test_a_patch_would_be_seen() -> None:
    model: Callable[[Tensor], Tensor] = small()
    assert "Conv2d" not in str(patches(lambda: model(X)))
    assert any("symbolic_trace" in place for place in patches(lambda: torch.fx.symbolic_trace(model)))
