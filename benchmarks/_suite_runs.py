"""Carries out a suite of ``_suites.py``: which run of it is next.

The result file holds what every run found, so that another machine goes on where this one stopped: only the teacher is
trained there anew, if a row that is not done needs it.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _common import written
from _runs import Run, built, compute, data_of, on_machine, run_on
from _studies import Options
from _suites import SUITES, Place, Row, Suite
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.functional import cross_entropy

from nbcompile.training.data.base import Data
from nbcompile.training.methods import ROUTE, SELF

TEACHER_SEED = 100
ANCHORS = 3
"""Networks of the teacher's route that are kept."""
STEPS = 20
"""Of plain training, that are timed for the plan."""


@dataclass(frozen=True)
class Cell:
    """A row of the table on one network.

    Attributes:
        network: its name.
        row: the method.
        runs: by seed.
    """

    network: str
    row: Row
    runs: list[Run]

    @property
    def taught(self) -> bool:
        """Whether it needs the suite's teacher."""
        told = self.runs[0].told
        return told.distils and told.teacher != SELF

    def cost(self, teacher: str) -> float:
        """Of a run, in epochs of the plain network.

        Args:
            teacher: the suite's.
        """
        told, one = self.runs[0].told, built(teacher) if self.taught else None
        return compute(self.network, told, nn.ModuleList([one] * ANCHORS) if one and told.method == ROUTE else one)


class Sitting:
    """One start of the script: the runs that are done stay done, the next one is begun while there is time.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.suite: Suite = SUITES[args.suite]
        self.args = args
        self.shared = {"train_images": args.images, "input_size": self.suite.size, **self.suite.recipe}
        self.seeds = range(2 if args.quick else self.suite.seeds)
        self.rows = [row for row in self.suite.rows if row.name in (args.settings or [row.name])]
        self.networks = args.networks or self.suite.networks
        self.least = 3 if args.quick else self.suite.epochs
        self.end = time.monotonic() + 60 * args.minutes if args.minutes else None
        self.console = Console()
        self.before: dict[str, Any] = written(args.out).get("results", {})
        self._restore(self.before.get("runs", {}))

    def _restore(self, runs: dict[str, dict[str, Any]]) -> None:
        """Take runs of other machines for done; but not the teacher, whose weights are not in the file."""
        for name, known in runs.items():
            file = self.args.runs / name / "found.json"
            if not file.exists() and not name.startswith(f"{self.suite.teacher}-"):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(known))

    def run(self, network: str, epochs: int, seed: int, options: Options) -> Run:
        """A run of the suite."""
        told = {**self.shared, "epochs": epochs, "seed": seed, **options}
        machine = on_machine(self.args.accelerator, options["method"])
        return run_on(self.args.data, network, told | machine, self.args.runs)

    def vanilla(self, network: str, epochs: int) -> list[Run]:
        """Plain runs, by seed."""
        return [self.run(network, epochs, seed, {"method": "vanilla"}) for seed in self.seeds]

    def teacher(self) -> Run:
        """The teacher's run."""
        return self.run(self.suite.teacher, self.least, TEACHER_SEED, {"method": "vanilla", "keep_anchors": ANCHORS})

    def data(self, network: str) -> Data:
        """The data set."""
        told = self.run(network, 1, 0, {"method": "vanilla"}).config
        return data_of(told.data, told.train_images, told.input_size)

    @property
    def lengths(self) -> list[int]:
        """Epochs of plain runs, each twice those before."""
        return [self.least * 2**i for i in range(1 + (1 if self.args.quick else self.suite.doublings))]

    def limit(self, network: str) -> int | None:
        """Epochs after which doubling them gains less than it must, or half of the longest; None: not seen yet."""
        for epochs in self.lengths[:-2]:
            once, twice = self.vanilla(network, epochs), self.vanilla(network, 2 * epochs)
            if not complete([*once, *twice]):
                return None
            if gain(once, twice) < self.suite.gain:
                return epochs
        return self.lengths[-2]

    def at(self, network: str) -> int | None:
        """Epochs of the rows: those that were said, or the network's limit."""
        return self.args.at or self.limit(network)

    def cells(self, network: str, epochs: int) -> Iterator[Cell]:
        """The rows of one network."""
        place = Place(epochs, Path(self.teacher().folder.name), Path(f"labels-{self.suite.teacher}"))
        for row in self.rows:
            yield Cell(network, row, [self.run(network, epochs, seed, row.options(place)) for seed in self.seeds])

    def wanted(self) -> Iterator[Run]:
        """All runs that are known to belong to the plan, in its order; the teacher where a missing row needs it.

        While it is not known how long rows run, longer plain runs are begun, which may turn out not to belong to it; a
        network waits until that is known of the one before.
        """
        for network in self.networks:
            epochs = self.at(network)
            yield from self.vanilla(network, self.least)
            yield from self.vanilla(network, 2 * (epochs or self.least))
            if any(cell.taught and not complete(cell.runs) for cell in self.cells(network, epochs or self.least)):
                yield self.teacher()
            if epochs is None:
                for length in self.lengths:
                    yield from self.vanilla(network, length)
                return
            for cell in self.cells(network, epochs):
                yield from cell.runs

    def next(self, running: Set[Run]) -> Run | None:
        """The next run that can begin beside those that are ``running``."""
        taught = self.teacher().found() is not None
        for run in self.wanted():
            waits = run.told.distils and run.told.teacher != SELF and not taught
            if run not in running and not waits and run.found() is None:
                return run
        return None

    def plan(self) -> None:
        """Print hours per row before anything is started."""
        table = Table("network", "row", "x plain", "hours for all seeds, one core", title=f"suite {self.args.suite}")
        for network in (self.suite.teacher, *self.networks):
            hours = self.hours_per_epoch(network) * self.least
            if network == self.suite.teacher:
                table.add_row(network, "teacher", "1.00", f"{hours:.1f}")
                continue
            for cell in self.cells(network, self.least):
                times = cell.cost(self.suite.teacher) / self.least
                table.add_row(network, cell.row.name, f"{times:.2f}", f"{times * hours * len(self.seeds):.1f}")
        self.console.print(table)
        self.console.print(f"at {self.least} epochs; twice as much wherever vanilla still gains by doubling them")

    def hours_per_epoch(self, network: str) -> float:
        """Of plain training."""
        return plain_hours(network, self.suite.size, self.suite.recipe["batch_size"], len(self.data(network).train))


def plain_hours(network: str, size: int, batch: int, images: int) -> float:
    """To train on so many images plainly, on one core, as this machine is now; reading them is not counted."""
    torch.set_num_threads(1)
    model, some = built(network).train(), torch.randn(batch, 3, size, size)
    labels = torch.zeros(batch, dtype=torch.int64)
    cross_entropy(model(some), labels).backward()
    began = time.perf_counter()
    for _ in range(STEPS):
        cross_entropy(model(some), labels).backward()
    return (time.perf_counter() - began) / STEPS * (images // batch) / 3600


def gain(before: Sequence[Run], after: Sequence[Run]) -> float:
    """Mean of the paired differences, in points."""
    return 100 * statistics.mean(b - a for a, b in zip(finals(before), finals(after), strict=True))


def complete(runs: Sequence[Run]) -> bool:
    """Whether all are done."""
    return all(run.found() is not None for run in runs)


def finals(runs: Sequence[Run]) -> list[float]:
    """Accuracies in [0, 1] of runs that are done."""
    return [found["final"] for run in runs if (found := run.found()) is not None]
