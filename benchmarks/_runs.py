"""The training runs of ``ablate.py``: kept by what they were told, gone on with."""

import dataclasses
import hashlib
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401  # processes that are started import this module first
import torch
from _studies import NETWORKS, RECIPE, TINY_IMAGENET, Options
from rich.console import Console
from torch import nn

import nbcompile
from nbcompile.training import TrainConfig, train
from nbcompile.training.command import named_teachers
from nbcompile.training.compute import training_cost
from nbcompile.training.data.base import Data
from nbcompile.training.data.load import load_data
from nbcompile.training.methods import METHODS
from nbcompile.training.seeds import seed_everything

SHARED = 0.25
"""Equal compute is rounded up to a multiple of this part of the run, so that settings share their controls."""

MACHINE = ("accelerator", "device_images", "cuda_graphs")
"""Options that say where a run is computed. It is the same run everywhere: one that says one of them says ``cpu``."""


def on_machine(accelerator: str, method: str) -> Options:
    """The `MACHINE` of a run on ``accelerator``; on a GPU steps are recorded where the method's are alike."""
    cuda = accelerator == "cuda"
    graphs = cuda and METHODS[method].alike
    return {"accelerator": accelerator, "device_images": cuda, "cuda_graphs": graphs}


IN_DATA_ROOT = ("data", "unlabeled")
"""Options that may name what is in the folder of the data sets."""


_UNSAID: dict[str, Any] = {"method": "netbooster", "ema": 0.0}
"""What a run was told that does not say it: the folders of runs from before these defaults changed keep their names."""

_TAUGHT: dict[str, Any] = {"temperature": 4.0, "virtual_weight": 0.9}
"""Likewise, where the method takes them; to others they mean nothing, whatever they were."""


def _unsaid(method: str) -> dict[str, Any]:
    """The defaults of the day on which runs were first kept."""
    return _UNSAID | {name: value for name, value in _TAUGHT.items() if name in METHODS[method].takes}


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        network: a name of ``NETWORKS``.
        fields: of its ``TrainConfig``, as JSON; paths may be relative, so that a run is the same on another machine.
        root: folder of all runs, and of their teachers and stored labels.
        data_root: folder that the data set is in.
        machine: its `MACHINE`, as JSON.
    """

    network: str
    fields: str
    root: Path
    data_root: Path = Path()
    machine: str = dataclasses.field(default="{}", compare=False)

    @classmethod
    def of(cls, network: str, options: Options, root: Path, data_root: Path = Path()) -> "Run":
        """A run that is told ``options``; those at their defaults are left out, so that new ones orphan no run."""
        machine = {name: value for name, value in options.items() if name in MACHINE}
        same = {name: value for name, value in options.items() if name not in MACHINE}
        said = TrainConfig(**same, **({"accelerator": "cpu"} if machine else {})).to_json()
        default = TrainConfig(**_UNSAID).to_json() | _unsaid(said["method"])
        fields = json.dumps({k: v for k, v in said.items() if v != default[k]}, sort_keys=True)
        return cls(network, fields, root, data_root, json.dumps(machine))

    @property
    def told(self) -> TrainConfig:
        """What it is told, and where it is computed."""
        told = json.loads(self.fields)
        return TrainConfig.from_json(_unsaid(told.get("method", _UNSAID["method"])) | told | json.loads(self.machine))

    @property
    def config(self) -> TrainConfig:
        """What it is told, with paths that can be opened here."""
        told = self.told
        data = {name: self._in_data_root(getattr(told, name)) for name in IN_DATA_ROOT}
        teacher, labels = told.teacher, told.stored_labels
        if teacher is not None and (self.root / teacher).exists():
            teacher = str(self.root / teacher)
        return dataclasses.replace(
            told, **data, teacher=teacher, stored_labels=None if labels is None else str(self.root / labels)
        )

    def _in_data_root(self, data: str | None) -> str | None:
        kind, colon, rest = (data or "").partition(":")
        return f"{kind}:{self.data_root / rest}" if colon and self.data_root != Path() else data

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        told = hashlib.sha1(f"{self.network} {self.fields}".encode()).hexdigest()[:16]
        return self.root / f"{self.network}-{self.told.method}-{told}"

    def found(self) -> dict[str, Any] | None:
        """What it found; None if it is not done."""
        return found(self.folder, self.told)


def run_on(data: str, network: str, options: Options, root: Path) -> Run:
    """A run on the ``KIND:PATH`` of ``data``, of which it keeps the name alone: it is the same on another machine."""
    kind, _, path = data.partition(":")
    return Run.of(network, {**options, "data": f"{kind}:{Path(path).name}"}, root, Path(path).resolve().parent)


Triple = tuple[Run, Run, Run | None]
"""A run, vanilla of the same epochs and schedule, and vanilla of the same compute."""


def built(network: str) -> nn.Module:
    """A network by its name, with weights drawn anew."""
    return {**NETWORKS, **TINY_IMAGENET}[network]()


@cache
def data_of(name: str, train_images: int | None, input_size: int | None = None) -> Data:
    """The data set, once a process, or once for all."""
    named = (name, train_images, input_size)
    if named not in _SHARED:
        return load_data(TrainConfig(data=name, train_images=train_images, input_size=input_size))
    return _SHARED[named]


_SHARED: dict[Any, Data] = {}
"""What another process has loaded; torch keeps it in memory that both have."""


def _begin(shared: dict[Any, Data]) -> None:
    _SHARED.update(shared)


def done(run: Run) -> Run:
    """Train, or go on with it, and keep what it found."""
    config = run.config
    seed_everything(config.seed)
    data = data_of(config.data, config.train_images, config.input_size)
    train_in(run.folder, built(run.network), config, data, run.told)
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
    means = now.keys() - {*MACHINE} - (_TAUGHT.keys() - {*config.method_row.takes})
    if changed := [name for name in told if name in means and told[name] != now[name]]:
        raise SystemExit(f"{folder} was run with other {', '.join(changed)}: choose another --runs")
    return known


def train_in(folder: Path, model: nn.Module, config: TrainConfig, data: Data, told: TrainConfig | None = None) -> None:
    """Train ``model`` in ``folder``, or go on with it, and keep what was found, and what it was ``told``."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    result = train(model, config, folder / "trained.pt", folder, resume=True, teacher=teacher_of(config), data=data)
    giants = [epoch.val_accuracy for epoch in result.history if epoch.phase == "giant"]
    final = result.accuracy if result.fused_accuracy is None else result.fused_accuracy
    known = {
        "config": (told or config).to_json(),
        "expanded": giants[-1] if giants else None,
        "final": final,
        "seconds": sum(epoch.seconds for epoch in result.history),
    }
    (folder / "found.json").write_text(json.dumps(known))


def teacher_of(config: TrainConfig) -> list[nn.Module] | None:
    """The foreign teachers of a run."""
    return [nbcompile.load(name) for name in named_teachers(config)] or None


def compute(network: str, config: TrainConfig, teacher: nn.Module | None = None) -> float:
    """What the run costs, in epochs of the plain network; what a foreign teacher has cost before is not counted.

    Args:
        network: a name of ``NETWORKS``.
        config: of the run.
        teacher: in place of the file that ``config`` names, where that is not written yet.
    """
    x = torch.zeros(1, 3, config.input_size or 32, config.input_size or 32)
    taught = teacher or next(iter(teacher_of(config) or ()), None)  # several of them cost the same
    return training_cost(built(network), config, x, 1, taught).over_plain * config.epochs


def controls(network: str, options: Options) -> tuple[Options, Options]:
    """Two vanilla runs: of the same epochs and schedule, and of the same compute on the schedule stretched to it."""
    config = TrainConfig(**options)
    shared = ("data", "train_images", "epochs", "restarts", "seed", "accelerator", "channels_last", *RECIPE)
    same = {name: getattr(config, name) for name in shared} | {"method": "vanilla"}
    times = compute(network, config) / config.epochs
    longer = math.ceil(SHARED * math.ceil(round(times / SHARED, 6)) * config.epochs)
    stretched = [round(epoch * longer / config.epochs) for epoch in config.restarts]
    return same, same | {"epochs": longer, "restarts": stretched}


def by_seed(runs: Sequence[Run]) -> list[Run]:
    """Each run once, the lowest seeds first."""
    return sorted(set(runs), key=lambda run: (run.told.seed, run.fields))


def carried_out(runs: Sequence[Run], jobs: int, end: float | None = None) -> bool:
    """Train what is not done yet, in order: see `carried_out_by`."""
    return carried_out_by(
        lambda running: next((x for x in runs if x.found() is None and x not in running), None), jobs, end
    )


def carried_out_by(choose: Callable[[Set[Run]], Run | None], jobs: int, end: float | None = None) -> bool:
    """Train what is chosen, until nothing is.

    Args:
        choose: the next run, which is not done, beside those that it is given, which are running; None is none now.
        jobs: processes.
        end: of the sitting, as ``time.monotonic`` has it; runs that are cut off go on from their last epoch next time.

    Returns:
        Whether that was before the end.

    Raises:
        Exception: of a run, when all others are done, or time is up.
    """
    first = choose(frozenset())
    if first is None:
        return True
    c = first.config
    named = (c.data, c.train_images, c.input_size)
    shared = {named: data_of(*named)} if jobs > 1 else {}
    spawn, console = multiprocessing.get_context("spawn"), Console(stderr=True)
    running: dict[Future[Run], Run] = {}
    failed: dict[Run, BaseException] = {}
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_begin, initargs=(shared,)) as pool:
        while True:
            while len(running) < jobs and (run := choose({*running.values(), *failed})) is not None:
                running[pool.submit(done, run)] = run
            if not running:
                break
            left = None if end is None else max(0.0, end - time.monotonic())
            finished, _ = wait(running, left, return_when=FIRST_COMPLETED)
            for future in finished:
                run, error = running.pop(future), future.exception()
                if error is not None:
                    failed[run] = error
                said = error or f"{100 * (run.found() or {}).get('final', math.nan):.2f} %"
                console.log(f"{run.folder.name}: {said}")
            if not finished:
                for process in list(pool._processes.values()):  # no word of concurrent.futures' own ends a running call
                    process.kill()
                break
    if failed:
        raise next(iter(failed.values()))
    return not running
