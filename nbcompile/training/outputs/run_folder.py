"""The run folder.

==================  =====================================================================================
``config.json``     the options, with those that follow from others filled in
``metrics.jsonl``   one line per epoch
``events.out.*``    the same for TensorBoard
``curves.png``      the same as a picture
``last.ckpt``       where a resumed run goes on
``best.ckpt``       the best network so far, as ``nbcompile.save`` writes it
``result.json``     what the finished run came to, and what it cost
``anchor-1.pt``     the networks of its route, where some are kept, the last one at its end
==================  =====================================================================================

A checkpoint is written after every epoch, and replaces the one before it in one stroke. It holds no generator state:
all randomness of an epoch is a function of (seed, epoch, process), see ``seeds.py``. All other files follow from it.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nbcompile.checkpoint import save
from nbcompile.core.copies import copied
from nbcompile.core.errors import CheckpointError, UsageError
from nbcompile.core.files import atomic
from nbcompile.results.numbers import json_ready
from nbcompile.training.options.config import TrainConfig
from nbcompile.training.options.machine import MachineOptions
from nbcompile.training.options.rules import without_unused
from nbcompile.training.outputs import curves, tensorboard
from nbcompile.training.outputs.records import Epoch, TrainResult

log = logging.getLogger("nbcompile")

_MAY_DIFFER = {"accumulate", *(field.name for field in fields(MachineOptions))}
"""Options that say how a run is computed, and not what: another machine, or less memory, is no other run."""

RUN_FORMAT = 1

_NAMES = (
    *("config.json", "metrics.jsonl", "curves.png", "last.ckpt", "best.ckpt", "result.json"),
    *("tiny.onnx", "tiny.tflite"),  # to measure the accuracy of a file
)

ANCHOR = "anchor-"
"""What the files of a route begin with; a number from 1 follows."""

_EXTRAS = {"tensorboard": "no events for TensorBoard", "matplotlib": "no curves.png"}
"""Packages that some files need, and what is not written without them."""

_NEEDED = {"tensorboard": "tensorboard.summary.writer.record_writer", "matplotlib": "matplotlib.figure"}
"""What is imported of them: a folder of the name is found as a package, too."""


@dataclass(frozen=True)
class RunFolder:
    """One run on disk.

    Attributes:
        path: of the folder.
    """

    path: Path

    @classmethod
    def beside(cls, output: str | Path, run_dir: str | Path | None) -> "RunFolder":
        """``run_dir``; or ``trained-run`` beside ``trained.pt``."""
        output = Path(output)
        return cls(output.parent / f"{output.stem}-run" if run_dir is None else Path(run_dir))

    @property
    def checkpoint(self) -> Path:
        """The file that a resumed run starts from."""
        return self.path / "last.ckpt"

    @property
    def best(self) -> Path:
        """The best network so far."""
        return self.path / "best.ckpt"

    @property
    def result(self) -> Path:
        """What the finished run came to."""
        return self.path / "result.json"

    @property
    def files(self) -> tuple[Path, ...]:
        """All that have names of their own."""
        return (*(self.path / name for name in _NAMES), *self.anchors())

    def anchors(self) -> list[Path]:
        """The networks of its route that are kept, in order."""
        found = [path for path in self.path.glob(f"{ANCHOR}*.pt") if path.stem.removeprefix(ANCHOR).isdecimal()]
        return sorted(found, key=lambda path: int(path.stem.removeprefix(ANCHOR)))

    def open(self, config: TrainConfig, *, resume: bool) -> dict[str, Any] | None:
        """The checkpoint to go on from, or None for a run that begins. Writes nothing.

        Raises:
            UsageError: if an unfinished run would be lost, or the run was started with another config.
            CheckpointError: if the checkpoint cannot be read.
        """
        if not self.checkpoint.exists():
            return None
        state = self._read()
        done, epochs = state["epoch"], state["config"]["epochs"] + (state["config"].get("int8") or 0)
        if resume:
            self._check_same(state["config"], config.to_json())
            return state
        if done < epochs:
            raise UsageError(
                f"{self.path} holds a run that stopped after epoch {done} of {epochs}: resume it, or choose another "
                f"run folder"
            )
        return None

    def begin(self, config: TrainConfig, history: list[Epoch], steps_per_epoch: int = 1) -> None:
        """Make the folder, write the config and the metrics known so far.

        Raises:
            UsageError: if the folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.path} cannot be made a run folder: {error}") from error
        if not history:  # of a finished run, which this one replaces
            self.checkpoint.unlink(missing_ok=True)
            self.best.unlink(missing_ok=True)
            self.result.unlink(missing_ok=True)
            for anchor in self.anchors():
                anchor.unlink()
        self._write("config.json", json.dumps(_resolved(config, steps_per_epoch), indent=2) + "\n")
        self._write("metrics.jsonl", "".join(_line(epoch) for epoch in history))
        for package, missing in _EXTRAS.items():
            if not _is_there(package):
                log.warning("%s: %s is not installed, pip install 'nbcompile[train]'", missing, package)
        if _is_there("tensorboard"):
            tensorboard.begin(self.path, history)

    def save(self, state: dict[str, Any], epoch: Epoch) -> None:
        """Write the checkpoint, then what the epoch adds to the metrics; a resumed run repairs what is lost between."""
        with atomic(self.checkpoint) as temporary, temporary.open("wb") as file:
            torch.save({"format": RUN_FORMAT, **state}, file)
        with (self.path / "metrics.jsonl").open("a") as metrics:
            metrics.write(_line(epoch))
        if _is_there("tensorboard"):
            tensorboard.add_epoch(self.path, epoch)

    def keep(self, model: nn.Module, history: Sequence[Epoch]) -> None:
        """Write ``model``, which the last epoch gave, if it is the best so far; before ``save``, to be made up for.

        A network that can be fused is better than a giant whose slopes are below 1, whatever their accuracies. What is
        written is proven, unless the file already holds a network of the same phase: it is that one with other weights.
        """
        *before, last = history
        known = max(before, key=_rank, default=None)
        if known is None or _rank(last) > _rank(known):
            again = known is not None and known.phase == last.phase and self.best.exists()
            save(copied(model).cpu(), self.best, proof=not again)

    def keep_anchor(self, model: nn.Module, done: int, config: TrainConfig) -> None:
        """Write ``model`` if the run keeps one after ``done`` epochs; before ``save``, as `keep`."""
        ends = [number * config.epochs // config.keep_anchors for number in range(1, config.keep_anchors + 1)]
        if done in ends:
            save(copied(model).cpu(), self.path / f"{ANCHOR}{ends.index(done) + 1}.pt")

    def draw(self, history: Sequence[Epoch], metric: str) -> None:
        """Write the picture of the curves, whose accuracies are a ``metric``."""
        if _is_there("matplotlib"):
            curves.save_curves(history, self.path / "curves.png", metric)

    def keep_result(self, result: TrainResult) -> None:
        """Write what the run came to, but for its history, which is in the metrics."""
        found = {name: value for name, value in result.to_json().items() if name != "history"}
        self._write(self.result.name, json.dumps(json_ready(found), indent=2) + "\n")

    def kept(self) -> str:
        """What a run that fails leaves behind, for its message."""
        if not self.checkpoint.exists():
            return "there is no checkpoint yet"
        return f"{self.checkpoint} still holds epoch {self._read()['epoch']}"

    def _read(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            version = state["format"]
        except Exception as error:  # whatever a damaged archive makes torch raise
            raise CheckpointError(
                f"{self.checkpoint} is damaged, or no checkpoint of nbcompile train ({type(error).__name__}): "
                f"choose another run folder"
            ) from error
        if version != RUN_FORMAT:
            raise CheckpointError(
                f"{self.checkpoint} has format {version}, this version of nbcompile reads {RUN_FORMAT}: choose another "
                f"run folder"
            )
        return state

    def _check_same(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        old = TrainConfig(ema=0.0).to_json() | old  # options that have come since then were at their first defaults
        old = without_unused(TrainConfig.from_json(old))[0].to_json()  # which were kept, once
        if new["macs"] is not None:
            old = old | {"epochs": new["epochs"]}  # which follow from the budget when the run begins
        differ = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
        if changed := [name for name in differ if name not in _MAY_DIFFER]:
            was = ", ".join(f"{name}={old.get(name)}" for name in changed)
            now = ", ".join(f"{name}={new.get(name)}" for name in changed)
            raise UsageError(
                f"{self.path} was started with {was}, not {now}: resume with the same options, or choose another "
                f"run folder"
            )
        if differ:
            now = ", ".join(f"{name}={new.get(name)} (it began with {old.get(name)})" for name in differ)
            log.warning("%s goes on with %s: its numbers are not those of a run that never stopped", self.path, now)

    def _write(self, name: str, text: str) -> None:
        with atomic(self.path / name) as temporary:
            Path(temporary).write_text(text)


def _rank(epoch: Epoch) -> tuple[bool, float]:
    return epoch.slope in (None, 1.0), epoch.val_accuracy


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None and import_module(_NEEDED[package]) is not None
    except (ImportError, ValueError):
        return False


def _resolved(config: TrainConfig, steps_per_epoch: int) -> dict[str, Any]:
    """All fields, and for None what it stands for."""
    found = config.to_json() | {"warmup_epochs": config.warmup, "ema": config.ema_decay(steps_per_epoch)}
    if config.expands:
        giant, decay, tune = config.phases
        found |= {"giant_epochs": decay - giant, "plt_epochs": tune - decay}
    return found


def _line(epoch: Epoch) -> str:
    return json.dumps(epoch.to_json()) + "\n"
