"""How much of a giant's advantage over plain training is left in each epoch of its decay?

``netbooster`` with preserved layers, the form that is level with plain training in docs/accuracy.md, beside the network
itself on the same learning rates: paired seeds, and after every epoch the difference of their accuracies, in points, on
held-out images and on those that are learnt. While slopes rise, the giant is measured as it is at that slope; at the
end it is the network again.

Every run is a folder of ``--runs``: what is done is not repeated, what was killed goes on. plots.py draws the result.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from _common import difference, parser, text, write
from _runs import Run, by_seed, carried_out, compute, run_on
from _studies import TINY_IMAGENET
from _suite_runs import finals
from _suite_table import cost_of, spread
from _suites import SUITES
from rich.console import Console
from rich.table import Table

SEED = 0
Pair = tuple[Run, Run]
"""A giant's run, and the plain one of its seed."""


def main() -> None:
    made = parser("survival", __doc__.partition("\n")[0])
    made.add_argument("--data", required=True, help="imagefolder:DIR of Tiny-ImageNet")
    made.add_argument("--images", type=int, help="train on so many")
    made.add_argument("--network", default="residual-91k", choices=list(TINY_IMAGENET))
    made.add_argument("--size", type=int, default=32)
    made.add_argument("--epochs", type=int, default=30)
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    made.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    args = made.parse_args()
    if args.quick:
        args.epochs, args.seeds, args.images = 4, 2, args.images or 2000
    pairs = [pair(args, seed) for seed in range(args.seeds)]
    carried_out(by_seed([run for both in pairs for run in both]), args.jobs)
    found = {"network": cost_of(args.network, args.size), **summary(pairs), **left([folders(both) for both in pairs])}
    show(args, found)
    units = {
        "validation, training": "accuracy of the giant over the plain network's after as many epochs, points: mean and "
        "standard error over seeds",
        "rising": "epochs in which slopes rise",
        "final, plain": "accuracy on the held-out images at the end, %: mean and standard deviation over seeds",
        "compute": "of the giant's run, in epochs of the plain network",
    }
    write(args, SEED, units, found)


def pair(args: argparse.Namespace, seed: int) -> Pair:
    """The two runs of a seed."""
    shared = {
        **SUITES["tiny-imagenet"].recipe, "seed": seed, "train_images": args.images, "input_size": args.size,
        "epochs": args.epochs, "accelerator": "cpu",
    }  # fmt: skip
    giant, plain = {"method": "netbooster", "preserve": True}, {"method": "vanilla"}
    run = partial(run_on, args.data, args.network, root=args.runs)
    return run(shared | giant), run(shared | plain)


def folders(both: Pair) -> tuple[Path, Path]:
    """Where the two are kept."""
    return both[0].folder, both[1].folder


def summary(pairs: Sequence[Pair]) -> dict[str, Any]:
    """What the runs ended with, and what a giant's costs."""
    giants, plains = ([both[i] for both in pairs] for i in (0, 1))
    return {
        "final": spread(finals(giants)),
        "plain": spread(finals(plains)),
        "over_plain": difference(finals(giants), finals(plains)),
        "compute": compute(giants[0].network, giants[0].config),
    }


def left(runs: Sequence[tuple[Path, Path]]) -> dict[str, Any]:
    """The giant's accuracies over the plain network's, epoch by epoch, and its slope.

    Args:
        runs: by seed, the folder of a giant's run and that of a plain one.

    Raises:
        SystemExit: if two have not as many epochs.
    """
    rows = [(_epochs(giant), _epochs(plain)) for giant, plain in runs]
    for (giant, plain), (mine, theirs) in zip(runs, rows, strict=True):
        if len(mine) != len(theirs):
            raise SystemExit(f"{giant} has {len(mine)} epochs, {plain} has {len(theirs)}: the two must have as many")
    first = rows[0][0]
    found: dict[str, Any] = {
        name: [
            difference([mine[i][field] for mine, _ in rows], [theirs[i][field] for _, theirs in rows])
            for i in range(len(first))
        ]
        for name, field in (("validation", "val_accuracy"), ("training", "train_accuracy"))
    }
    return found | {
        "epochs": [one["epoch"] for one in first],
        "slope": [one["slope"] or 0.0 for one in first],
        "rising": [one["epoch"] for one in first if one["phase"].startswith("plt")],
    }


def _epochs(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def show(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Print the epochs around the decay."""
    table = Table("epoch", "slope", "validation", "training", title=f"{args.network}, giant over plain, points")
    rows = zip(found["epochs"], found["slope"], found["validation"], found["training"], strict=True)
    for epoch, slope, held_out, learnt in rows:
        table.add_row(str(epoch), f"{slope:.2f}", text(held_out, "+"), text(learnt, "+"))
    Console().print(table)


if __name__ == "__main__":
    main()
