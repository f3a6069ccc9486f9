"""Cases of a fuzzer, dealt out to processes that read them; one that a case ends is started anew behind it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROCESSES = int(os.environ.get("NBCOMPILE_FUZZ_PROCESSES", "1"))
WORKER = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.worker"]


def count(full: int) -> int:
    """How many cases are tried where ``full`` is what is asked for now and then: a twentieth."""
    return full if os.environ.get("NBCOMPILE_FUZZ") == "full" else full // 20


def reports(kind: str, seeds: Path, numbers: Iterable[int]) -> list[dict[str, Any]]:
    """What came of the cases ``numbers``, as `tests.fuzz.worker` tells it.

    Args:
        kind: a function of `tests.fuzz.kinds`.
        seeds: the folder of whole files that it damages.
        numbers: seeds of the damage.
    """
    whole = list(numbers)
    with ThreadPoolExecutor(PROCESSES) as pool:
        dealt = pool.map(lambda share: list(_read(kind, seeds, share)), [whole[i::PROCESSES] for i in range(PROCESSES)])
        return [report for share in dealt for report in share]


def faults(found: Iterable[dict[str, Any]]) -> str:
    """The cases that are not as they should be, to be shown."""
    return "\n".join(f"case {report['number']}: {report['fault']}" for report in found if report["fault"])


def _read(kind: str, seeds: Path, numbers: list[int]) -> Iterator[dict[str, Any]]:
    left = list(numbers)
    while left:
        with tempfile.TemporaryDirectory() as folder, _started(kind, seeds, folder) as process:
            yield from _answers(process, left)
        if left:  # it ended in the middle of a case
            yield {
                "number": left.pop(0),
                "said": None,
                "fault": f"the process ended with {process.returncode}",
                "seconds": 0,
                "mib": 0,
            }


def _started(kind: str, seeds: Path, folder: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NBCOMPILE_FUZZ_SEEDS": str(seeds), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*WORKER, kind, folder], cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    if process.stdout.readline() != '"ready"\n':
        raise RuntimeError(f"the worker for {kind} does not start: it ended with {process.wait()}")
    return process


def _answers(process: subprocess.Popen[str], left: list[int]) -> Iterator[dict[str, Any]]:
    """Reports, as long as the process gives them; what is reported is taken from ``left``."""
    assert process.stdin is not None
    assert process.stdout is not None
    while left:
        try:
            print(left[0], file=process.stdin, flush=True)
        except BrokenPipeError:
            return
        line = process.stdout.readline()
        if not line:
            return
        del left[0]
        yield json.loads(line)
