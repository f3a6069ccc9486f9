"""The run folder: ``config.json``, ``metrics.jsonl`` (one line per epoch) and ``last.ckpt``.

A checkpoint is written after every epoch, and replaces the one before it in one stroke. It holds no generator state:
all randomness of an epoch is a function of (seed, epoch, process), see ``data.py``.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nbcompile.core.errors import CheckpointError, UsageError
from nbcompile.core.files import atomic
from nbcompile.training.config import TrainConfig
from nbcompile.training.records import Epoch

FORMAT = 1


@dataclass(frozen=True)
class RunFolder:
    """One run on disk.

    Attributes:
        path: of the folder.
    """

    path: Path

    @property
    def checkpoint(self) -> Path:
        """The file that a resumed run starts from."""
        return self.path / "last.ckpt"

    def open(self, config: TrainConfig, *, resume: bool) -> dict[str, Any] | None:
        """The checkpoint to go on from, or None for a run that begins. Writes nothing.

        Raises:
            UsageError: if an unfinished run would be lost, or the run was started with another config.
            CheckpointError: if the checkpoint cannot be read.
        """
        if not self.checkpoint.exists():
            return None
        state = self._read()
        done, epochs = state["epoch"], state["config"]["epochs"]
        if resume:
            self._check_same(state["config"], config.to_json())
            return state
        if done < epochs:
            raise UsageError(
                f"{self.path} holds a run that stopped after epoch {done} of {epochs}: resume it, or choose another "
                f"run folder"
            )
        return None

    def begin(self, config: TrainConfig, history: list[Epoch]) -> None:
        """Make the folder, write the config and the metrics known so far.

        Raises:
            UsageError: if the folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.path} cannot be made a run folder: {error}") from error
        if not history:
            self.checkpoint.unlink(missing_ok=True)  # of a finished run, which this one replaces
        self._write("config.json", json.dumps(config.to_json(), indent=2) + "\n")
        self._write("metrics.jsonl", "".join(_line(epoch) for epoch in history))

    def save(self, state: dict[str, Any], epoch: Epoch) -> None:
        """Write the checkpoint, then the epoch's line; a resumed run repairs a line lost between the two."""
        with atomic(self.checkpoint) as temporary:
            torch.save({"format": FORMAT, **state}, temporary)
        with (self.path / "metrics.jsonl").open("a") as metrics:
            metrics.write(_line(epoch))

    def _read(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            version = state["format"]
        except Exception as error:  # whatever a damaged archive makes torch raise
            raise CheckpointError(
                f"{self.checkpoint} is damaged, or no checkpoint of nbcompile train ({type(error).__name__}): "
                f"choose another run folder"
            ) from error
        if version != FORMAT:
            raise CheckpointError(
                f"{self.checkpoint} has format {version}, this version of nbcompile reads {FORMAT}: choose another "
                f"run folder"
            )
        return state

    def _check_same(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        differ = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
        if differ:
            was = ", ".join(f"{name}={old.get(name)}" for name in differ)
            now = ", ".join(f"{name}={new.get(name)}" for name in differ)
            raise UsageError(
                f"{self.path} was started with {was}, not {now}: resume with the same options, or choose another "
                f"run folder"
            )

    def _write(self, name: str, text: str) -> None:
        with atomic(self.path / name) as temporary:
            Path(temporary).write_text(text)


def _line(epoch: Epoch) -> str:
    return json.dumps(epoch.to_json()) + "\n"
