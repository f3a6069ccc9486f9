"""Does a giant transfer better? Trained on some classes, its slopes raised on others, against the plain network.

The paper's second setting (arXiv:2306.13586, sec. 4.3): the giant learns the source set, PLT and fine-tuning happen on
the target set. Here the source is the first six classes, and the target the last four, of which few images are known,
the same for all seeds. Two more forms: a slower decay; and NetBooster on the source alone, whose contracted network is
then fine-tuned. Beside them stands the plain network: on the target alone; from source to target in the same epochs;
with as many times the epochs as a giant costs on the source, and on both.

All learn at the recipe's rate, which suits the plain network on the target (seed 100, 0.03 to 0.8, by held-out images).
Differences are means over seeds of paired differences, in points of accuracy on the target's held-out images, ± one
standard error over seeds. Runs that are done are not repeated, killed ones go on.
"""

import argparse
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from _common import difference, parser, text, write
from _runs import data_of, found, train_in
from _studies import NETWORKS, RECIPE, Options
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import nbcompile
from nbcompile.core.errors import UsageError
from nbcompile.training import TrainConfig
from nbcompile.training.data.base import Data, Images, Labelled
from nbcompile.training.data.subset import Subset, chosen
from nbcompile.training.seeds import seed_everything

SEED = 0
SOURCE = 6
"""Classes that are the source; the others are the target."""

OTHER = 1000
"""Added to the seed on the target: the same one would draw the new head that the source began with."""

REFERENCES = ("plain", "plain, compute on the source", "plain, compute on both")
FORMS = ("target alone", *REFERENCES, "giant", "giant, 40 % decay", "linear on the source")


class Classes:
    """The images of some neighbouring classes, whose labels count from 0.

    Args:
        images: of all classes.
        first: the first class.
        end: the one after the last.
    """

    def __init__(self, images: Images, first: int, end: int) -> None:
        labels = images.labels
        self.part, self.first = Subset(images, torch.nonzero((labels >= first) & (labels < end)).flatten()), first

    @property
    def labels(self) -> Tensor:
        """Labels ``(n,)``."""
        return self.part.labels - self.first

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, indices: list[int]) -> Labelled | UsageError:
        batch = self.part[indices]
        return batch if isinstance(batch, UsageError) else (batch[0], batch[1] - self.first)


@cache
def split(name: str, target_images: int) -> tuple[Data, Data]:
    """Source and target."""
    data = data_of(name, None)

    def some(first: int, end: int) -> Data:
        train, val = (Classes(images, first, end) for images in (data.train, data.val))
        return replace(data, train=train, val=val, classes=data.classes[first:end])

    target = some(SOURCE, len(data.classes))
    return some(0, SOURCE), replace(target, train=chosen(target, target_images))


@dataclass(frozen=True)
class Chain:
    """The runs of one seed.

    Attributes:
        args: of the command line.
        seed: of the source; the target has another one.
    """

    args: argparse.Namespace
    seed: int

    def trained(self, name: str, start: Callable[[], nn.Module], data: Data, options: Options) -> nn.Module:
        """A network after the run called ``name``; where that is done, as it was saved."""
        config, folder = self.config(options), self.folder(name)
        if found(folder, config) is None:
            seed_everything(config.seed)
            train_in(folder, start(), config, data)
        return nbcompile.load(folder / "trained.pt")

    def config(self, options: Options) -> TrainConfig:
        """What a run is told."""
        shared = {"method": "vanilla", "data": self.args.data, "accelerator": "cpu", "channels_last": True}
        return TrainConfig(**{**RECIPE, **shared, "seed": self.seed, "new_head": True, **options})

    def folder(self, name: str) -> Path:
        """Of the run called ``name``."""
        root: Path = self.args.runs
        return root / f"{self.args.network}-{self.seed}" / name

    def on_source(self, name: str, start: Callable[[], nn.Module], factor: float = 1.0, **more: Any) -> nn.Module:
        """A fresh network, trained on the source."""
        source, _ = split(self.args.data, self.args.target_images)
        return self.trained(f"source, {name}", start, source, {"epochs": round(factor * self.args.epochs), **more})

    def on_target(self, name: str, start: Callable[[], nn.Module], factor: float, more: Options) -> float:
        """Accuracy of a network after the target."""
        _, target = split(self.args.data, self.args.target_images)
        epochs, seed = round(factor * self.args.target_epochs), self.seed + OTHER
        options = {"epochs": epochs, "seed": seed, "train_images": self.args.target_images, **more}
        self.trained(name, start, target, options)
        return self.accuracy(name, options)

    def accuracy(self, name: str, options: Options) -> float:
        """Of the run called ``name``, on the held-out images of its classes."""
        known = found(self.folder(name), self.config(options))
        assert known is not None
        accuracy: float = known["final"]
        return accuracy


def chain(args: argparse.Namespace, seed: int) -> dict[str, float]:
    """Accuracies of one seed: of all forms on the target, and of the giant and the plain network on the source."""
    one, network, times = Chain(args, seed), NETWORKS[args.network], giant_cost(args.network)
    plain, longer = one.on_source("plain", network), one.on_source("compute", network, times)
    giant = one.on_source("giant", partial(expanded, network))
    decayed = one.on_source("linear", network, method="netbooster")
    raised: Options = {"method": "netbooster", "giant_epochs": 0}
    runs: dict[str, tuple[Callable[[], nn.Module], float, Options]] = {
        "target alone": (network, 1, {}),
        "plain": (lambda: plain, 1, {}),
        "plain, compute on the source": (lambda: longer, 1, {}),
        "plain, compute on both": (lambda: longer, times, {}),
        "giant": (lambda: giant, 1, raised),
        "giant, 40 % decay": (lambda: giant, 1, {**raised, "plt_epochs": round(0.4 * args.target_epochs)}),
        "linear on the source": (lambda: nbcompile.fuse(decayed), 1, {}),
    }
    accuracies = {form: one.on_target(form, *runs[form]) for form in FORMS}
    source = {name: one.accuracy(f"source, {name}", {"epochs": args.epochs}) for name in ("plain", "giant")}
    return accuracies | {f"source: {name}": accuracy for name, accuracy in source.items()}


def expanded(network: Callable[[], nn.Module]) -> nn.Module:
    """The giant of a fresh network."""
    return nbcompile.expand(network(), torch.zeros(1, 3, 32, 32))


def giant_cost(network: str) -> float:
    """MACs of the giant over the network's."""
    x = torch.zeros(1, 3, 32, 32)
    return nbcompile.cost(expanded(NETWORKS[network]), x).macs / nbcompile.cost(NETWORKS[network](), x).macs


def main() -> None:
    made = parser("transfer", __doc__.partition("\n")[0])
    made.add_argument("--data", required=True, help="as of nbcompile train; colour images of 32 pixels, ten classes")
    made.add_argument("--network", default="2k", choices=list(NETWORKS))
    made.add_argument("--epochs", type=int, default=20, help="on the source")
    made.add_argument("--target-epochs", type=int, default=60)
    made.add_argument("--target-images", type=int, default=2000, help="train on so many")
    made.add_argument("--seeds", type=int, default=4)
    made.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    made.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    args = made.parse_args()
    if args.quick:
        args.epochs, args.target_epochs, args.target_images, args.seeds = 2, 5, 400, 2
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        accuracies = list(pool.map(partial(chain, args), range(args.seeds)))
    rows = [row(form, accuracies) for form in FORMS]
    show(rows)
    units = {
        "accuracy": "on the held-out images of the target, %, mean over seeds",
        "over": "paired difference from the form that is named, points: mean and standard error",
        "seeds": "accuracies in [0, 1]; those that begin with 'source' on the held-out images of the source",
        "giant_cost": "MACs of the giant over the network's, and epochs of 'compute' over those of the others",
    }
    write(args, SEED, units, {"forms": rows, "seeds": accuracies, "giant_cost": giant_cost(args.network)})


def row(form: str, accuracies: list[dict[str, float]]) -> dict[str, Any]:
    """What a form came to, over the seeds."""
    mine = [one[form] for one in accuracies]
    over = {other: difference(mine, [one[other] for one in accuracies]) for other in REFERENCES}
    return {"form": form, "accuracy": 100 * statistics.mean(mine), "over": over}


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table("form", "accuracy", *(f"over {other}" for other in REFERENCES))
    for one in rows:
        table.add_row(one["form"], f"{one['accuracy']:.2f}", *(text(found, "+") for found in one["over"].values()))
    Console().print(table)


if __name__ == "__main__":
    main()
