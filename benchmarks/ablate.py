"""Does it make tiny networks better? NetBooster's forms and switches against vanilla runs of the same budget.

A study (``--studies``; see ``_studies.py``) trains one network by several settings and seeds, and each setting stands
beside two vanilla runs of the same seed: one of the same epochs and the same learning-rate schedule, restarts included;
one of the same training compute (MACs × images), which has more epochs, on a schedule stretched likewise. Seeds are
paired: the same initial weights, batches and augmentation where networks are the same.

Printed as the paper prints it: the giant's accuracy at the end of its phase (``expanded``), and that of the fused
network at the end of the run (``final``). Differences are means over the seeds of paired differences, in points of
accuracy on the held-out images, ± one standard error; only beyond two of them is a difference a finding.

Every run is a folder of ``--runs``, by what it was told. Runs that are done are not repeated, killed ones go on, and
``--jobs`` processes share them; one vanilla run serves all studies.
"""

import hashlib
import json
import multiprocessing
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from _common import parser, write
from _studies import NETWORKS, RECIPE, STUDIES, Options, Setting
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import nbcompile
from nbcompile.training import TrainConfig, train
from nbcompile.training.data import Data, load_data, seed_everything

SEED = 0


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        network: a name of ``NETWORKS``.
        fields: of its ``TrainConfig``.
        root: folder of all runs.
    """

    network: str
    fields: str
    root: Path

    @classmethod
    def of(cls, network: str, options: Options, root: Path) -> "Run":
        """A run that is told ``options``."""
        return cls(network, json.dumps(TrainConfig(**options).to_json(), sort_keys=True), root)

    @property
    def config(self) -> TrainConfig:
        """What it is told."""
        return TrainConfig.from_json(json.loads(self.fields))

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        told = hashlib.sha1(f"{self.network} {self.fields}".encode()).hexdigest()[:16]
        return self.root / f"{self.network}-{self.config.method}-{told}"

    def found(self) -> dict[str, Any] | None:
        """What it found; None if it is not done."""
        file = self.folder / "found.json"
        known: dict[str, Any] | None = json.loads(file.read_text()) if file.exists() else None
        return known


@cache
def data_of(name: str, train_images: int | None) -> Data:
    """The data set, once a process."""
    return load_data(TrainConfig(data=name, train_images=train_images))


def done(run: Run) -> Run:
    """Train, or go on with it, and keep what it found."""
    torch.set_num_threads(1)
    config = run.config
    seed_everything(config.seed)
    model = NETWORKS[run.network]()
    data = data_of(config.data, config.train_images)
    run.folder.mkdir(parents=True, exist_ok=True)
    result = train(model, config, run.folder / "trained.pt", run.folder, resume=True, data=data)
    giants = [epoch.val_accuracy for epoch in result.history if epoch.phase == "giant"]
    final = result.accuracy if result.fused_accuracy is None else result.fused_accuracy
    found = {
        "expanded": giants[-1] if giants else None,
        "final": final,
        "seconds": sum(epoch.seconds for epoch in result.history),
    }
    (run.folder / "found.json").write_text(json.dumps(found))
    return run


def compute(network: str, config: TrainConfig) -> float:
    """Multiply-accumulates of the forward passes of the run, per image, in those of an epoch of the plain network."""
    if not config.expands:
        return float(config.epochs)
    model, x = NETWORKS[network](), torch.zeros(1, 3, 32, 32)
    giant = nbcompile.expand(
        model, x, where=config.where, block=config.block, ratio=config.ratio, preserve=config.preserve
    )
    ratio = nbcompile.cost(giant, x).macs / nbcompile.cost(model, x).macs
    start, _, tune = config.phases
    cheap = config.epochs - tune if config.collapse or config.contract_at == "decay" else 0
    taught = (config.epochs - config.phases.decay) * ratio if config.teacher == "self" else 0.0
    # A teacher only answers: a third of the work of learning.
    return start + (config.epochs - start - cheap) * ratio + cheap + taught / 3


def controls(network: str, options: Options) -> tuple[Options, Options]:
    """Two vanilla runs: of the same epochs and schedule, and of the same compute on the schedule stretched to it."""
    config = TrainConfig(**options)
    shared = ("data", "train_images", "epochs", "restarts", "seed", "ema", "accelerator", *RECIPE)
    same = {name: getattr(config, name) for name in shared} | {"method": "vanilla"}
    longer = round(compute(network, config))
    stretched = [round(epoch * longer / config.epochs) for epoch in config.restarts]
    return same, same | {"epochs": longer, "restarts": stretched}


def main() -> None:
    made = parser("ablate", __doc__.partition("\n")[0])
    made.add_argument("--data", required=True, help="as of nbcompile train; colour images of 32 pixels, ten classes")
    made.add_argument("--studies", nargs="+", default=["forms"], choices=list(STUDIES))
    made.add_argument("--network", default="17k", choices=list(NETWORKS))
    made.add_argument("--epochs", type=int, default=50)
    made.add_argument("--images", type=int, help="train on so many")
    made.add_argument("--seeds", type=int, default=8)
    made.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    made.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    args = made.parse_args()
    if args.quick:
        args.epochs, args.seeds, args.images = 5, 2, 600
    cells = {study: list(planned(args, STUDIES[study])) for study in args.studies}
    carried_out(
        [run for rows in cells.values() for _, triples in rows for triple in triples for run in triple], args.jobs
    )
    tables = {study: [row(setting, triples) for setting, triples in rows] for study, rows in cells.items()}
    for study, rows in tables.items():
        show(study, rows, args)
    units = {
        "expanded, final, vanilla": "accuracy on the held-out images, %: mean and standard deviation over seeds",
        "over_same, over_compute": "paired difference of final from vanilla, points: mean and standard error",
        "epochs_compute": "epochs of the vanilla run of the same compute",
    }
    write(args, SEED, units, {"network": cost_of(args.network), "recipe": RECIPE, "studies": tables})


def planned(args: Any, settings: Sequence[Setting]) -> Iterator[tuple[Setting, list[tuple[Run, Run, Run]]]]:
    """The runs of a study: by setting and seed the run itself and its two controls."""
    shared = {"data": args.data, "train_images": args.images, "epochs": args.epochs, "accelerator": "cpu", **RECIPE}
    run = partial(Run.of, args.network, root=args.runs)
    for setting in settings:
        triples = []
        for seed in range(args.seeds):
            options = {"method": "netbooster", **shared, "seed": seed, **setting.options(args.epochs)}
            same, more = controls(args.network, options)
            triples.append((run(options), run(same), run(more)))
        yield setting, triples


def carried_out(runs: Sequence[Run], jobs: int) -> None:
    """Train what is not done yet, the lowest seeds first."""
    missing = sorted({run for run in runs if run.found() is None}, key=lambda run: (run.config.seed, run.fields))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool, Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("runs", total=len(missing))
        for future in as_completed([pool.submit(done, run) for run in missing]):
            future.result()
            progress.advance(task)


def row(setting: Setting, triples: Sequence[tuple[Run, Run, Run]]) -> dict[str, Any]:
    """What a setting came to, over its seeds."""
    mine, same, more = ([_found(run) for run in runs] for runs in zip(*triples, strict=True))
    final = [one["final"] for one in mine]
    expanded = [one["expanded"] for one in mine if one["expanded"] is not None]
    return {
        "setting": setting.name,
        "seeds": len(triples),
        "expanded": _spread(expanded),
        "final": _spread(final),
        "vanilla": _spread([one["final"] for one in same]),
        "vanilla_compute": _spread([one["final"] for one in more]),
        "epochs_compute": triples[0][2].config.epochs,
        "over_same": _difference(final, [one["final"] for one in same]),
        "over_compute": _difference(final, [one["final"] for one in more]),
        "finals": final,
        "seconds": sum(one["seconds"] for one in mine),
    }


def _found(run: Run) -> dict[str, Any]:
    found = run.found()
    assert found is not None, f"{run.folder} is not done"
    return found


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"mean": 100 * statistics.mean(values), "std": 100 * statistics.stdev(values) if len(values) > 1 else 0.0}


def _difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Paired, in points."""
    points = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    error = statistics.stdev(points) / len(points) ** 0.5 if len(points) > 1 else float("nan")
    return {"mean": statistics.mean(points), "standard_error": error}


def show(study: str, rows: Sequence[dict[str, Any]], args: Any) -> None:
    """Print one study."""
    names = ("setting", "expanded", "final", "vanilla", "final - vanilla", "final - vanilla of equal compute")
    table = Table(*names, title=f"{study}: {args.network}, {args.epochs} epochs, {args.seeds} seeds")
    for one in rows:
        spreads = (
            f"{s['mean']:.2f} ± {s['std']:.2f}" if s else "" for s in map(one.get, ("expanded", "final", "vanilla"))
        )
        over = (f"{d['mean']:+.2f} ± {d['standard_error']:.2f}" for d in (one["over_same"], one["over_compute"]))
        first, second = over
        table.add_row(one["setting"], *spreads, first, f"{second} ({one['epochs_compute']} epochs)")
    Console().print(table)


def cost_of(network: str) -> dict[str, Any]:
    """What the network costs on one image of 32 pixels."""
    found = nbcompile.cost(NETWORKS[network](), torch.zeros(1, 3, 32, 32))
    return {"name": network, "macs": found.macs, "params": found.params}


if __name__ == "__main__":
    main()
