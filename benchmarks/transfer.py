"""Does a giant transfer better? Trained on some classes, its slopes raised on others, against the plain network.

The paper's second setting (arXiv:2306.13586, sec. 4.3): the source set trains a giant of full size, PLT and fine-tuning
happen on the target set. Here the source is the first six classes, and the target the last four, of which few images
are known. Beside it stand the plain network, trained and fine-tuned for the same epochs; the same for as many times
the epochs as a giant costs, on source and target; and the target alone, without a source.

Differences are means over seeds of paired differences, in points of accuracy on the target's held-out images, ± one
standard error. Runs that are done are not repeated, killed ones go on.
"""

import argparse
import json
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from _common import parser, write
from _studies import NETWORKS, RECIPE
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import nbcompile
from nbcompile.training import TrainConfig, train
from nbcompile.training.choosing import Part, chosen
from nbcompile.training.data import Batch, Data, Images, load_data
from nbcompile.training.seeds import seed_everything

SEED = 0
SOURCE = 6
"""Classes that are the source; the others are the target."""

FORMS = (
    "target alone",
    "plain",
    "plain, same compute",
    "giant",
    "giant, 40 % decay",
    "giant, contracted on the source",
)


class Classes:
    """The images of some neighbouring classes, whose labels count from 0.

    Args:
        images: of all classes.
        first: the first class.
        end: the one after the last.
    """

    def __init__(self, images: Images, first: int, end: int) -> None:
        labels = images.labels
        self.part, self.first = Part(images, torch.nonzero((labels >= first) & (labels < end)).flatten()), first

    @property
    def labels(self) -> Tensor:
        """Labels ``(n,)``."""
        return self.part.labels - self.first

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, indices: list[int]) -> Batch:
        batch = self.part[indices]
        assert isinstance(batch, tuple)
        return batch[0], batch[1] - self.first


@cache
def data_of(name: str, target_images: int) -> tuple[Data, Data]:
    """Source and target."""
    data = load_data(TrainConfig(data=name))

    def some(first: int, end: int) -> Data:
        train, val = (Classes(images, first, end) for images in (data.train, data.val))
        return replace(data, train=train, val=val, classes=data.classes[first:end])

    target = some(SOURCE, len(data.classes))
    return some(0, SOURCE), replace(target, train=chosen(target, target_images))


def trained(
    folder: Path, start: Callable[[], nn.Module], data: Data, args: argparse.Namespace, **options: Any
) -> tuple[nn.Module, float]:
    """A network after a run in ``folder``, and its accuracy; where the run is done, as it was saved."""
    file, found = folder / "trained.pt", folder / "found.json"
    if not found.exists():
        folder.mkdir(parents=True, exist_ok=True)
        seed_everything(args.seed)
        config = TrainConfig(
            **{**RECIPE, "method": "vanilla", "data": args.data, "seed": args.seed, "accelerator": "cpu",
               "channels_last": True, "new_head": True, **options}
        )  # fmt: skip
        result = train(start(), config, file, folder, resume=True, data=data)
        accuracy = result.accuracy if result.fused_accuracy is None else result.fused_accuracy
        found.write_text(json.dumps(accuracy))
    return nbcompile.load(file), json.loads(found.read_text())


def chain(args: argparse.Namespace, seed: int) -> dict[str, float]:
    """Accuracies of one seed."""
    torch.set_num_threads(1)
    args = argparse.Namespace(**vars(args) | {"seed": seed})
    source, target = data_of(args.data, args.target_images)
    root = args.runs / f"{args.network}-{args.source_epochs}-{args.target_epochs}-{args.target_images}-{seed}"
    network, times = NETWORKS[args.network], giant_cost(args.network)

    def on_source(name: str, start: Callable[[], nn.Module], factor: float = 1.0, **options: Any) -> nn.Module:
        epochs = round(factor * args.source_epochs)
        return trained(root / f"source {name}", start, source, args, epochs=epochs, **options)[0]

    def on_target(name: str, start: nn.Module, factor: float = 1.0, **options: Any) -> float:
        epochs, lr = round(factor * args.target_epochs), {"lr": args.target_lr}
        return trained(root / f"target {name}", lambda: start, target, args, epochs=epochs, **lr, **options)[1]

    seed_everything(seed)
    fresh = network()
    plain, longer = on_source("plain", network), on_source("longer", network, times)
    giant = on_source("giant", partial(expanded, network), compile=args.compile)
    decayed = on_source("giant, decay", network, method="netbooster", compile=args.compile)
    raised: dict[str, Any] = {"method": "netbooster", "giant_epochs": 0, "compile": args.compile}
    found = (
        trained(root / "target alone", lambda: fresh, target, args, epochs=args.target_epochs)[1],
        on_target("plain", plain),
        on_target("longer", longer, times),
        on_target("giant", giant, **raised),
        on_target("giant, 40 %", giant, **raised, plt_epochs=round(0.4 * args.target_epochs)),
        on_target("contracted", nbcompile.fuse(decayed)),
    )
    return dict(zip(FORMS, found, strict=True))


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
    made.add_argument("--network", default="8k", choices=list(NETWORKS))
    made.add_argument("--source-epochs", type=int, default=30)
    made.add_argument("--target-epochs", type=int, default=60)
    made.add_argument("--target-images", type=int, default=2000, help="train on so many")
    made.add_argument("--target-lr", type=float, default=0.1, help="of networks that come from the source")
    made.add_argument("--seeds", type=int, default=4)
    made.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    made.add_argument("--compile", action="store_true", help="the networks that expand, which takes a C++ compiler")
    made.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    args = made.parse_args()
    if args.quick:
        args.source_epochs, args.target_epochs, args.target_images, args.seeds = 2, 5, 400, 2
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(partial(chain, args), range(args.seeds)))
    rows = [row(form, found) for form in FORMS]
    show(rows)
    units = {
        "accuracy": "on the held-out images of the target, %, mean over seeds",
        "over": "paired difference from the form that is named, points: mean and standard error",
        "giant_cost": "MACs of the giant over the network's: so many times the epochs has 'plain, same compute'",
    }
    write(args, SEED, units, {"forms": rows, "found": found, "giant_cost": giant_cost(args.network)})


def row(form: str, found: list[dict[str, float]]) -> dict[str, Any]:
    """What a form came to, over the seeds."""
    over = {other: _difference([100 * (one[form] - one[other]) for one in found]) for other in FORMS[1:3]}
    return {"form": form, "accuracy": 100 * statistics.mean(one[form] for one in found), "over": over}


def _difference(points: list[float]) -> dict[str, float | None]:
    error = statistics.stdev(points) / len(points) ** 0.5 if len(points) > 1 else None
    return {"mean": statistics.mean(points), "standard_error": error}


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table("form", "accuracy", *(f"over {other}" for other in FORMS[1:3]))
    for one in rows:
        differences = (f"{d['mean']:+.2f} ± {d['standard_error'] or 0:.2f}" for d in one["over"].values())
        table.add_row(one["form"], f"{one['accuracy']:.2f}", *differences)
    Console().print(table)


if __name__ == "__main__":
    main()
