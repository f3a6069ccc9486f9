"""Fits the tables of ``exporters/to_tflite/targets/cycle_tables.py`` to the instructions in ``results/on_device.json``.

For each kind of kernel, what instructions are spent on by least squares of relative errors, nothing negative. What is
printed goes into the tables; ``results/cycles.json`` says how far the tables then are from what was counted.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from _common import ROOT, parser, write
from scipy.optimize import nnls

from nbcompile.exporters.to_tflite.targets.cycle_tables import DSP, HELIUM, PLAIN, Table
from nbcompile.exporters.to_tflite.targets.cycles import instructions
from nbcompile.exporters.to_tflite.targets.work import CALL, Work

MACHINES = {"m0plus": ("PLAIN", PLAIN), "m7": ("DSP", DSP), "m55": ("HELIUM", HELIUM)}
Row = tuple[Work, int, int]
"""Work, how often, and instructions of each."""


def main() -> None:
    args = parser("cycles", __doc__).parse_args()
    found = json.loads((ROOT / "benchmarks/results/on_device.json").read_text())["results"]
    results: dict[str, Any] = {}
    for machine, (name, table) in MACHINES.items():
        files = {
            f"{network}, {way}": list(rows(row[machine]["steps"]))
            for network, ways in found.items()
            for way, row in ways.items()
            if machine in row
        }
        print(f"\n{name}: Table = {{")
        for kind, spent in fitted([row for own in files.values() for row in own]).items():
            print(f"    {json.dumps(kind)}: {json.dumps(spent)},")
        print("}")
        results[machine] = {file: far(own, table) for file, own in files.items()}
    write(args, 0, {"total, median_layer, worst_layer": "share of the instructions that were counted"}, results)


def rows(steps: Sequence[str]) -> Iterator[Row]:
    """What ``on_device.py`` wrote of one file."""
    for line in steps:
        times, spent, kind, counts = re.fullmatch(r"(\d+) × (\d+) of (.+?): (.+)", line).groups()  # type: ignore[union-attr]
        done = {what: int(number) for number, what in (part.split() for part in counts.split(", "))}
        yield Work(kind, 0, done), int(times), int(spent)


def fitted(found: list[Row]) -> Table:
    """Instructions for each of what a kind does."""
    table = {}
    for kind in sorted({work.kind for work, _, _ in found if not _in_float(work)}):
        own = [row for row in found if row[0].kind == kind]
        names = list(own[0][0].counts)
        if len({tuple(work.counts.values()) for work, _, _ in own}) < len(names):
            names = [max((n for n in names if n != CALL), key=lambda n: own[0][0].counts[n])]
        spent = np.array([float(row[2]) for row in own])
        done = np.array([[row[0].counts[name] for name in names] for row in own]) / spent[:, None]
        each, _ = nnls(done, np.ones(len(own)))
        table[kind] = {name: float(f"{one:.4g}") for name, one in zip(names, each, strict=True) if one > 0}
    return table


def _in_float(work: Work) -> bool:
    """Whether it computes in float32, whose time the processor's own unit decides."""
    return work.kind.endswith(" in float32") and not work.kind.startswith("DEQUANTIZE")


def far(own: list[Row], table: Table) -> dict[str, Any]:
    """How far a table is from what was counted."""
    own = [row for row in own if not _in_float(row[0])]
    known = [(instructions(work, table) or 0.0, times, spent) for work, times, spent in own]
    total = sum(times * guess for guess, times, _ in known) / sum(times * spent for _, times, spent in known) - 1
    each = sorted(abs(guess / spent - 1) for guess, times, spent in known for _ in range(times))
    return {"total": round(total, 4), "median_layer": round(each[len(each) // 2], 4), "worst_layer": round(each[-1], 4)}


if __name__ == "__main__":
    main()
