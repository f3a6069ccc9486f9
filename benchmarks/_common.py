"""What the benchmarks share: their command line, their result files, and timing side by side."""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _checkout import ROOT

from nbcompile.report.environment import machine_line, versions

PAPER = ("mobilenetv2_tiny", "mcunet", "mobilenetv2_50", "mobilenetv2_100")
"""The networks of the paper's Table 1, as they are called in ``nbcompile.zoo``."""


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser with ``--out`` (the result file ``NAME.json``) and ``--quick`` (a smoke run, not for results)."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / f"{name}.json")
    made.add_argument("--quick", action="store_true", help="a small run that shows that the script works")
    return made


def write(args: argparse.Namespace, seed: int, units: dict[str, str], results: Any) -> None:
    """Write ``results`` with where, when and of what they are.

    Args:
        args: parsed by :func:`parser`; all of them are recorded.
        seed: of weights and inputs.
        units: what each field of ``results`` is measured in.
        results: JSON-able.
    """
    found = {
        "options": {key: str(value) for key, value in vars(args).items() if key != "out"},
        "seed": seed,
        "units": units,
        "results": results,
        "environment": {
            "machine": machine_line(),
            "versions": versions(),
            "commit": _commit(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "load_average": [round(load, 2) for load in os.getloadavg()],
            "threads": os.environ.get("OMP_NUM_THREADS", "set by the script"),
        },
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written: {args.out}")


def written(path: Path) -> dict[str, Any]:
    """What :func:`write` wrote to a file before; nothing if there is none."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def alternate(
    calls: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each call by ``clock``, in turn ``repeats`` times: what slows the machine down meets all of them.

    The order of each round is drawn anew, so that nobody always follows the same one. Each call is run once before,
    unmeasured.
    """
    order = random.Random(0)
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name in order.sample(list(calls), len(calls)):
            started = clock()
            calls[name]()
            seconds[name].append(clock() - started)
    return seconds


def ratios(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the ratios of neighbouring measurements."""
    low, middle, high = statistics.quantiles((a / b for a, b in zip(above, below, strict=True)), n=4)
    return {"median": middle, "quartile_1": low, "quartile_3": high}


def run_process(command: Sequence[str], **environment: str) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a process with its children, one OMP thread.

    Raises:
        RuntimeError: with its complaints, if it fails.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}
    )
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} gave {done.returncode}: {done.stderr[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard error of paired differences of accuracies in [0, 1], in points; one pair has no error."""
    points = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    error = statistics.stdev(points) / len(points) ** 0.5 if len(points) > 1 else None
    return {"mean": statistics.mean(points), "standard_error": error}


def text(found: dict[str, float | None] | None, sign: str = "") -> str:
    """A mean, and its spread or error where there is one."""
    if found is None:
        return ""
    mean, *spread = found.values()
    return " ± ".join([f"{mean:{sign}.2f}", *(f"{one:.2f}" for one in spread if one is not None)])


def _commit() -> str:
    """The commit of the tree, with a ``+`` if files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
