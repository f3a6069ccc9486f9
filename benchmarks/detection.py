"""NetBooster's Table 3 in the paper's form: a detector on MobileNetV2-0.35, by plain training, NetAug and NetBooster.

The paper (arXiv:2306.13586, sec. 4.3) has Pascal VOC at 416 pixels, networks that were pretrained on ImageNet, and
60.8, 62.4 and 62.6 AP50. Here it is any set in Pascal VOC's layout, and nothing is pretrained unless ``--weights``
names a trained network and ``--giant`` a trained giant. AP50 is of the fused network on the part that is held out,
after the last epoch. All methods have the same epochs, recipe and augmentation; the last column has the
compute of each over that of plain training, and plain training of NetBooster's compute stands beside them.

Differences are means over seeds of paired differences, in points, ± one standard error. Runs that are done are not
repeated, killed ones go on. One process a core.
"""

import argparse
import json
import math
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from _common import difference, parser, text, write
from rich.console import Console
from rich.table import Table

import nbcompile
from nbcompile.models import build
from nbcompile.training import TrainConfig, train
from nbcompile.training.seeds import seed_everything

BACKBONE = "nbcompile:mobilenetv2_35"
METHODS = ("vanilla", "netaug", "netbooster")
LONGER = "vanilla, compute of netbooster"
QUICK: dict[str, Any] = {"epochs": 2, "size": 64, "seeds": 1, "train_images": 16}
PLT = 0.2
"""Share of the epochs in which slopes rise, from the first on: the paper's for downstream tasks, of a giant that is
trained already."""


def options_of(args: argparse.Namespace, method: str, seed: int, epochs: int | None = None) -> dict[str, Any]:
    """What a run is told."""
    found: dict[str, Any] = {
        "method": method, "data": args.data, "input_size": args.size, "epochs": epochs or args.epochs,
        "batch_size": args.batch_size, "lr": args.lr, "seed": seed, "train_images": args.train_images,
        "accelerator": args.accelerator,
    }  # fmt: skip
    if method == "netbooster" and args.giant is not None:
        found |= {"giant_epochs": 0, "plt_epochs": max(1, round(PLT * args.epochs))}
    return found


def done(folder: Path, options: dict[str, Any], weights: str | None) -> dict[str, Any]:
    """What a run came to; it is trained, or gone on with, where that is not known yet."""
    torch.set_num_threads(1)
    kept = folder / "found.json"
    if kept.exists():
        known: dict[str, Any] = json.loads(kept.read_text())
        if known["options"] != options:
            raise SystemExit(f"{folder} holds a run of other options: choose another --runs")
        return known
    config = TrainConfig(**options)
    seed_everything(config.seed)
    model = build(BACKBONE).model if weights is None else nbcompile.load(weights)
    folder.mkdir(parents=True, exist_ok=True)
    result = train(model, config, folder / "trained.pt", resume=True)
    ap = result.accuracy if result.fused_accuracy is None else result.fused_accuracy
    found = {
        "options": options, "ap50": ap, "seconds": result.seconds,
        "over_plain": result.cost.over_plain, "plain_epochs": result.cost.plain_epochs,
    }  # fmt: skip
    kept.write_text(json.dumps(found))
    return found


def all_of(args: argparse.Namespace, jobs: list[tuple[str, int, int | None]]) -> dict[tuple[str, int], dict[str, Any]]:
    """What the runs came to, by row and seed.

    Args:
        args: of the command line.
        jobs: row, seed, and epochs where they are not those of all.
    """
    found = {}
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {}
        for row, seed, epochs in jobs:
            options = options_of(args, row.partition(",")[0], seed, epochs)
            folder = args.runs / f"{row.replace(', ', '-').replace(' ', '-')}-{seed}"
            weights = args.giant if options["method"] == "netbooster" else args.weights
            waiting[pool.submit(done, folder, options, weights)] = (row, seed)
        for one in as_completed(waiting):
            row, seed = waiting[one]
            found[row, seed] = one.result()
            print(f"{row}, seed {seed}: AP50 {found[row, seed]['ap50']:.2%}", flush=True)
    return found


def table_of(found: dict[tuple[str, int], dict[str, Any]], seeds: list[int]) -> list[dict[str, Any]]:
    """One row a method."""
    plain = [found["vanilla", seed]["ap50"] for seed in seeds]
    rows = []
    for row in (*METHODS, LONGER):
        ours = [found[row, seed]["ap50"] for seed in seeds]
        spread = 100 * statistics.stdev(ours) if len(ours) > 1 else None
        rows.append(
            {
                "row": row,
                "ap50": {"mean": 100 * statistics.mean(ours), "standard_deviation": spread},
                "over_vanilla": None if row == "vanilla" else difference(ours, plain),
                "epochs": found[row, seeds[0]]["options"]["epochs"],
                "over_plain": found[row, seeds[0]]["over_plain"],
                "seeds": ours,
            }
        )
    return rows


def main() -> None:
    made = parser("detection", __doc__ or "")
    made.add_argument("--data", required=True, help="voc:DIR")
    made.add_argument("--runs", type=Path, default=Path("detection-runs"), help="folder of the runs")
    made.add_argument("--weights", help="a trained network to begin with; it describes itself")
    made.add_argument("--giant", help="a trained giant that NetBooster begins with")
    made.add_argument("--epochs", type=int, default=200)
    made.add_argument("--size", type=int, default=416, help="side of the images, in pixels")
    made.add_argument("--batch-size", type=int, default=16)
    made.add_argument("--lr", type=float, default=0.1)
    made.add_argument("--train-images", type=int)
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--jobs", type=int, default=1, help="runs at a time, a core each")
    made.add_argument("--accelerator", default="cpu")
    args = made.parse_args()
    if args.quick:
        vars(args).update(QUICK)
    seeds = list(range(args.seeds))
    found = all_of(args, [(method, seed, None) for seed in seeds for method in METHODS])
    longer = math.ceil(found["netbooster", 0]["over_plain"] * args.epochs)
    found |= all_of(args, [(LONGER, seed, longer) for seed in seeds])
    rows = table_of(found, seeds)
    shown = Table("", "AP50, %", "over vanilla, points", "epochs", "× plain compute")
    for row in rows:
        compute = row["over_plain"] * row["epochs"] / args.epochs
        shown.add_row(
            row["row"], text(row["ap50"]), text(row["over_vanilla"], "+"), str(row["epochs"]), f"{compute:.2f}"
        )
    Console().print(shown)
    units = {"ap50": "%, mean and standard deviation over seeds", "over_vanilla": "points", "seeds": "AP50, in [0, 1]"}
    write(args, 0, units, rows)


if __name__ == "__main__":
    main()
