"""Do images without labels make a tiny network better, and does aligning a feature help where they are biased?

The claim of Tang et al. 2019 (arXiv:1907.06065): labelled images only < mimicking a giant on images without labels <
the same with low-level features of both sets aligned. A giant is trained on all images of ``--data``; the tiny network
sees few of them with labels (``--images``), and beside them either the rest of the same set (no bias: aligning should
change nothing), or another set (``--biased``). Controls: more epochs on the labelled images, for the compute of
mimicry; the giant's answers on labelled images alone.

Differences are means over seeds of paired differences, in points of accuracy on the held-out images, ± one standard
error. Every run is a folder of ``--runs``: what is done is not repeated, what was killed goes on. The hours of each row
are printed before the first run starts.
"""

import argparse
import json
import math
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from _common import difference, parser, text, write
from _mps import sharing_gpu
from _runs import Run, built, by_seed, carried_out, compute, on_machine, run_on
from _studies import TINY_IMAGENET, Options
from _suite_runs import ANCHORS, TEACHER_SEED, complete, finals, plain_hours
from _suite_table import cost_of, spread
from _suites import SUITES
from rich.console import Console
from rich.table import Table

from nbcompile.training import TrainConfig
from nbcompile.training.data.load import load_data

SEED = 0
LABELLED, MIMIC = "labelled only", "+ mimic"
LONGER, ANSWERS = "labelled only, the compute of mimicry", "the giant's answers, labelled only"

BESIDE = {"over_labelled": LABELLED, "over_compute": LONGER, "over_answers": ANSWERS}
"""What each row is compared with, by the name of the difference."""


class Cell(NamedTuple):
    """A row of the table for one set without labels, and its runs by seed."""

    unlabeled: str
    name: str
    runs: list[Run]


def main() -> None:
    made = parser("unlabeled", __doc__.partition("\n")[0])
    made.add_argument("--data", required=True, help="imagefolder:DIR of Tiny-ImageNet")
    made.add_argument("--biased", required=True, help="the other set: cifar10:FILE.zip, or as --unlabeled of train")
    made.add_argument("--images", type=int, default=10_000, help="with labels; the giant has all")
    made.add_argument("--network", default="residual-91k", choices=list(TINY_IMAGENET))
    made.add_argument("--giant", default="residual-731k", choices=list(TINY_IMAGENET))
    made.add_argument("--size", type=int, default=32)
    made.add_argument("--epochs", type=int, default=120, help="of the labelled images")
    made.add_argument("--giant-epochs", type=int, default=30, help="of all images")
    made.add_argument("--adversarial", type=float, nargs="+", default=[0.1])
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    made.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    made.add_argument("--accelerator", default="cpu", help="as of nbcompile train")
    made.add_argument("--minutes", type=float, help="of this sitting; another one goes on")
    made.add_argument("--plan", action="store_true", help="print the hours of each row, and train nothing")
    args = made.parse_args()
    if args.quick:
        args.epochs, args.giant_epochs, args.seeds = 3, ANCHORS, 2
    told = {"epochs": args.giant_epochs, "seed": TEACHER_SEED, "train_images": None, "keep_anchors": ANCHORS}
    giant = run(args, args.giant, told)  # the suite's teacher, where that is done
    table = cells(args, giant)
    plan(args, giant, table)
    if args.plan:
        return
    end = time.monotonic() + 60 * args.minutes if args.minutes else None
    with sharing_gpu(Console()) if args.accelerator == "cuda" else nullcontext():
        runs = by_seed([one for cell in table for one in cell.runs])
        if not (carried_out([giant], 1, end) and carried_out(runs, args.jobs, end)):
            Console().print(f"{done_of(runs)} runs are done, and time is up: the same command goes on")
            return
    found = results(table)
    show(args, found)
    units = {
        "final, finals": "accuracy on the held-out images, %",
        "over_labelled, over_compute, over_answers, over_mimic": "paired difference, points: mean and standard error",
        "epochs": "of the labelled images",
        "told_apart": "share of places that the discriminator told rightly in the last epoch, by seed",
    }
    taught = cost_of(args.giant, args.size) | {"accuracy": 100 * finals([giant])[0]}
    write(args, SEED, units, {"network": cost_of(args.network, args.size), "giant": taught, "rows": found})


def run(args: argparse.Namespace, network: str, options: Options) -> Run:
    """A run of the study."""
    shared = {"method": "vanilla", "input_size": args.size, "train_images": args.images, "epochs": args.epochs}
    told = {**SUITES["tiny-imagenet"].recipe, **shared, **options}
    return run_on(args.data, network, told | on_machine(args.accelerator, told["method"]), args.runs)


def cells(args: argparse.Namespace, giant: Run) -> list[Cell]:
    """The table: rows without images that have no labels, then those of both sets."""
    kind, colon, path = args.biased.partition(":")
    teacher = str(Path(giant.folder.name) / "trained.pt")
    mimic = {"method": "mimic", "teacher": teacher, "unlabeled": "rest"}
    probe = run(args, args.network, mimic).told
    longer = math.ceil(compute(args.network, probe, built(args.giant)))
    rows: list[tuple[str, str, Options]] = [
        ("none", LABELLED, {}),
        ("none", LONGER, {"epochs": longer}),
        ("none", ANSWERS, {"method": "kd", "teacher": teacher}),
    ]
    beside = os.path.relpath(path, Path(args.data.partition(":")[2]).resolve().parent) if colon else ""
    for unlabeled in ("rest", f"{kind}{colon}{beside}"):
        told = {**mimic, "unlabeled": unlabeled}
        shown = "rest" if unlabeled == "rest" else args.biased
        rows.append((shown, MIMIC, told))
        rows += [(shown, f"{MIMIC} + adversarial {x}", {**told, "adversarial": x}) for x in args.adversarial]
    seeds = range(args.seeds)
    return [Cell(which, name, [run(args, args.network, {**o, "seed": s}) for s in seeds]) for which, name, o in rows]


def plan(args: argparse.Namespace, giant: Run, table: list[Cell]) -> None:
    """Print hours per row before anything is started."""
    config = giant.config
    images = len(load_data(TrainConfig(data=config.data, input_size=args.size)).train)
    printed = Table("unlabeled", "row", "x plain", "hours for all seeds, one core", "runs done")
    hours = plain_hours(args.giant, args.size, config.batch_size, images) * args.giant_epochs
    printed.add_row(
        "", f"giant, {args.giant_epochs} epochs of {images} images", "1.00", f"{hours:.2f}", done_of([giant])
    )
    epoch = plain_hours(args.network, args.size, config.batch_size, args.images)
    for which, name, runs in table:
        spent = epochs_of(args, runs[0])
        hours = f"{spent * epoch * len(runs):.2f}"
        printed.add_row(which, name, f"{spent / runs[0].told.epochs:.2f}", hours, done_of(runs))
    Console().print(printed)


def epochs_of(args: argparse.Namespace, one: Run) -> float:
    """What a run costs, in epochs of plain training."""
    return compute(args.network, one.told, built(args.giant) if one.told.distils else None)


def done_of(runs: list[Run]) -> str:
    """How many of them are done."""
    return f"{sum(one.found() is not None for one in runs)} of {len(runs)}"


def results(table: list[Cell]) -> list[dict[str, Any]]:
    """The rows, each beside those without images that have no labels, and mimicry without an adversary on its set."""
    by_name = {(cell.unlabeled, cell.name): finals(cell.runs) for cell in table}
    found = []
    for which, name, runs in table:
        assert complete(runs)
        ours, mimic = finals(runs), by_name.get((which, MIMIC))
        adversarial = runs[0].told.adversarial > 0
        found.append(
            {
                "unlabeled": which,
                "row": name,
                "final": spread(ours),
                "finals": [100 * one for one in ours],
                **{field: over(name, ours, by_name, other) for field, other in BESIDE.items()},
                "over_mimic": difference(ours, mimic) if adversarial and mimic else None,
                "epochs": runs[0].told.epochs,
                "told_apart": [told_apart(one) for one in runs] if adversarial else None,
                "seconds": sum(known["seconds"] for one in runs if (known := one.found())),
            }
        )
    return found


def over(name: str, ours: list[float], by_name: dict[tuple[str, str], list[float]], other: str) -> Any:
    """The differences of a row from the ``other`` without images that have no labels; None from itself."""
    return None if name == other else difference(ours, by_name["none", other])


def told_apart(one: Run) -> float:
    """What the discriminator of a run that is done knew at its end."""
    last = (one.folder / "metrics.jsonl").read_text().splitlines()[-1]
    return float(json.loads(last)["measured"]["told_apart"])


def show(args: argparse.Namespace, found: list[dict[str, Any]]) -> None:
    """Print the table."""
    names = ("unlabeled", "row", "final", *(f"- {row}" for row in BESIDE.values()), "- mimic", "told apart")
    table = Table(*names, title=f"{args.network}, {args.images} labelled images, {args.seeds} seeds")
    for one in found:
        told = ", ".join(f"{x:.2f}" for x in one["told_apart"] or ())
        beside = (text(one[field], "+") for field in (*BESIDE, "over_mimic"))
        table.add_row(one["unlabeled"], one["row"], text(one["final"]), *beside, told)
    Console().print(table)


if __name__ == "__main__":
    main()
