"""The training runs of ``ablate.py``: kept by what they were told, gone on with."""

import hashlib
import json
import math
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from _studies import NETWORKS, RECIPE, Options
from rich.console import Console
from rich.progress import Progress
from torch import nn

import nbcompile
from nbcompile.training import TrainConfig, train
from nbcompile.training.compute import training_cost
from nbcompile.training.data.base import Data
from nbcompile.training.data.load import load_data
from nbcompile.training.methods import SELF
from nbcompile.training.seeds import seed_everything

SHARED = 0.25
"""Equal compute is rounded up to a multiple of this part of the run, so that settings share their controls."""

_UNSAID: dict[str, Any] = {"method": "netbooster", "ema": 0.0}
"""What a run was told that does not say it: the folders of runs from before these defaults changed keep their names."""


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        network: a name of ``NETWORKS``.
        fields: of its ``TrainConfig``, as JSON.
        root: folder of all runs.
    """

    network: str
    fields: str
    root: Path

    @classmethod
    def of(cls, network: str, options: Options, root: Path) -> "Run":
        """A run that is told ``options``; those at their defaults are left out, so that new ones orphan no run."""
        said, default = TrainConfig(**options).to_json(), TrainConfig(**_UNSAID).to_json()
        return cls(network, json.dumps({k: v for k, v in said.items() if v != default[k]}, sort_keys=True), root)

    @property
    def config(self) -> TrainConfig:
        """What it is told."""
        return TrainConfig.from_json(_UNSAID | json.loads(self.fields))

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        told = hashlib.sha1(f"{self.network} {self.fields}".encode()).hexdigest()[:16]
        return self.root / f"{self.network}-{self.config.method}-{told}"

    def found(self) -> dict[str, Any] | None:
        """What it found; None if it is not done."""
        return found(self.folder, self.config)


Triple = tuple[Run, Run, Run | None]
"""A run, vanilla of the same epochs and schedule, and vanilla of the same compute."""


@cache
def data_of(name: str, train_images: int | None) -> Data:
    """The data set, once a process."""
    return load_data(TrainConfig(data=name, train_images=train_images))


def done(run: Run) -> Run:
    """Train, or go on with it, and keep what it found."""
    config = run.config
    seed_everything(config.seed)
    train_in(run.folder, NETWORKS[run.network](), config, data_of(config.data, config.train_images))
    return run


def found(folder: Path, config: TrainConfig) -> dict[str, Any] | None:
    """What the run in ``folder`` found; None if it is not done.

    Raises:
        SystemExit: if it was told something else; options that it did not know are at their defaults.
    """
    file = folder / "found.json"
    if not file.exists():
        return None
    known: dict[str, Any] = json.loads(file.read_text())
    told, now = known.get("config", {}), config.to_json()
    if changed := [name for name in told if name in now and told[name] != now[name]]:
        raise SystemExit(f"{folder} was run with other {', '.join(changed)}: choose another --runs")
    return known


def train_in(folder: Path, model: nn.Module, config: TrainConfig, data: Data) -> None:
    """Train ``model`` in ``folder``, or go on with it, and keep what was found."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    result = train(model, config, folder / "trained.pt", folder, resume=True, teacher=teacher_of(config), data=data)
    giants = [epoch.val_accuracy for epoch in result.history if epoch.phase == "giant"]
    final = result.accuracy if result.fused_accuracy is None else result.fused_accuracy
    known = {
        "config": config.to_json(),
        "expanded": giants[-1] if giants else None,
        "final": final,
        "seconds": sum(epoch.seconds for epoch in result.history),
    }
    (folder / "found.json").write_text(json.dumps(known))


def teacher_of(config: TrainConfig) -> nn.Module | None:
    """The foreign teacher of a run."""
    return nbcompile.load(config.teacher) if config.teacher not in (None, SELF) else None


def compute(network: str, config: TrainConfig) -> float:
    """What the run costs, in epochs of the plain network; what a foreign teacher has cost before is not counted."""
    x = torch.zeros(1, 3, 32, 32)
    return training_cost(NETWORKS[network](), config, x, 1, teacher_of(config)).over_plain * config.epochs


def controls(network: str, options: Options) -> tuple[Options, Options]:
    """Two vanilla runs: of the same epochs and schedule, and of the same compute on the schedule stretched to it."""
    config = TrainConfig(**options)
    shared = ("data", "train_images", "epochs", "restarts", "seed", "accelerator", "channels_last", *RECIPE)
    same = {name: getattr(config, name) for name in shared} | {"method": "vanilla"}
    times = compute(network, config) / config.epochs
    longer = math.ceil(SHARED * math.ceil(round(times / SHARED, 6)) * config.epochs)
    stretched = [round(epoch * longer / config.epochs) for epoch in config.restarts]
    return same, same | {"epochs": longer, "restarts": stretched}


def carried_out(runs: Sequence[Run], jobs: int) -> None:
    """Train what is not done yet, the lowest seeds first."""
    missing = sorted({run for run in runs if run.found() is None}, key=lambda run: (run.config.seed, run.fields))
    if not missing:
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool, Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("runs", total=len(missing))
        for future in as_completed([pool.submit(done, run) for run in missing]):
            future.result()
            progress.advance(task)
