"""What a suite found: ``ablate.py --suite``."""

import argparse
import json
import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from _common import difference, text, write
from _mps import sharing_gpu
from _runs import Run, built, carried_out_by
from _suite_runs import Cell, Sitting, complete, finals
from rich.table import Table

import nbcompile


def run_suite(args: argparse.Namespace) -> None:
    """Print the plan, carry it out as far as there is time, write what is there."""
    sitting = Sitting(args)
    if args.accelerator != "cuda" or args.plan:  # whose hours are those of a core
        sitting.plan()
    if not args.plan:
        with sharing_gpu(sitting.console) if args.accelerator == "cuda" else nullcontext():
            try:
                carried_out_by(sitting.next, args.jobs, sitting.end)
            finally:
                conclude(sitting)


def conclude(sitting: Sitting) -> None:
    """Print and write what is there."""
    args = sitting.args
    found = results(sitting)
    if args.accelerator == "cuda" and torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
    show(sitting, found)
    units = {
        "final, vanilla_by_epochs, finals": "accuracy on the held-out images, %",
        "over_same, over_compute": "paired difference from vanilla of as many epochs, and of at least the compute: "
        "points, mean and standard error",
        "limit": "epochs after which doubling them gains less than the suite's gain, by what is known; null: not yet",
        "vanilla_on, on": "accelerators that computed these runs",
        "enough": "whether those plain runs cost as much; where none do, they are the longest there are",
        "compute": "of a run, in epochs of the plain network",
    }
    write(args, 0, units, {"recipe": dict(sitting.suite.recipe), **found})


def results(sitting: Sitting) -> dict[str, Any]:
    """What is done so far."""
    found: dict[str, Any] = {"networks": {}, "missing": [], "teacher": sitting.before.get("teacher")}
    if "device" in sitting.before:
        found["device"] = sitting.before["device"]
    teacher = sitting.teacher().found()
    if teacher is not None:
        found["teacher"] = cost_of(sitting.suite.teacher, sitting.suite.size) | {"accuracy": 100 * teacher["final"]}
    files = sorted(sitting.args.runs.glob("*/found.json"))
    found["runs"] = {file.parent.name: json.loads(file.read_text()) for file in files}
    for network in sitting.suite.networks:
        plain = {n: runs for n in sitting.lengths if complete(runs := sitting.vanilla(network, n))}
        limit, at = sitting.limit(network), sitting.at(network) or sitting.least
        rows = [_row(sitting, cell, plain, at) for cell in sitting.cells(network, at) if complete(cell.runs)]
        found["networks"][network] = {
            "cost": cost_of(network, sitting.suite.size),
            "vanilla_by_epochs": {str(n): spread(finals(runs)) for n, runs in plain.items()},
            "vanilla_on": {str(n): sorted({on(run) for run in runs}) for n, runs in plain.items()},
            "limit": limit,
            "epochs": at,
            "rows": rows,
        }
        there = {row["name"] for row in rows}
        found["missing"] += [f"{network}: {row.name}" for row in sitting.rows if row.name not in there]
    return found


def _row(sitting: Sitting, cell: Cell, plain: dict[int, list[Run]], epochs: int) -> dict[str, Any]:
    """A row; the plain runs of at least its budget are those of the next doubling of the epochs, or the longest."""
    cost = cell.cost(sitting.suite.teacher)
    enough = next((n for n in sorted(plain) if n >= round(cost, 6)), None)
    beside = enough or max(plain, default=None)
    ours = finals(cell.runs)
    return {
        "name": cell.row.name,
        "final": spread(ours),
        "finals": [100 * one for one in ours],
        "compute": cost,
        "over_same": difference(ours, finals(plain[epochs])) if epochs in plain else None,
        "over_compute": difference(ours, finals(plain[beside])) if beside else None,
        "epochs_compute": beside,
        "enough": enough is not None,
        "on": sorted({on(run) for run in cell.runs}),
        "seconds": sum(known["seconds"] for run in cell.runs if (known := run.found())),
    }


def show(sitting: Sitting, found: dict[str, Any]) -> None:
    """Print the tables."""
    for network, one in found["networks"].items():
        lengths = ", ".join(f"{n}: {text(value)}" for n, value in one["vanilla_by_epochs"].items())
        names = ("row", "final", "x plain", "- vanilla", "- vanilla of its budget")
        table = Table(*names, title=f"{network}, {one['epochs']} epochs (vanilla by epochs: {lengths})")
        for row in one["rows"]:
            told = f"({row['epochs_compute']} epochs{'' if row['enough'] else ', which is less'})"
            longer = f"{text(row['over_compute'], '+')} {told}" if row["over_compute"] else ""
            times = f"{row['compute'] / one['epochs']:.2f}"
            table.add_row(row["name"], text(row["final"]), times, text(row["over_same"], "+"), longer)
        sitting.console.print(table)
    if found["missing"]:
        sitting.console.print("missing:", ", ".join(found["missing"]))


def on(run: Run) -> str:
    """The accelerator that computed a run that is done."""
    return str((run.found() or {}).get("config", {}).get("accelerator", "cpu"))


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation, in %."""
    return {"mean": 100 * statistics.mean(values), "std": 100 * statistics.stdev(values) if len(values) > 1 else None}


def cost_of(network: str, size: int) -> dict[str, Any]:
    """What a network costs on one image."""
    found = nbcompile.cost(built(network), torch.zeros(1, 3, size, size))
    return {"name": network, "macs": found.macs, "params": found.params}
