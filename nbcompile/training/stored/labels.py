"""Stored labels: random views of the images and a teacher's answers to them, written once and used by many runs.

A run of E epochs uses views 0 to E - 1 (``stored_views`` for fewer), each epoch another one: first the one that its
seed says, then the next, and so around. What is missing, the teacher answers in the epoch that needs it; so a first
run costs what it costs with a teacher beside it, and later ones the network alone.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from nbcompile.core.cost import cost
from nbcompile.core.errors import UsageError
from nbcompile.core.random_state import forked_rng
from nbcompile.training.data.base import Data, Views
from nbcompile.training.loader import BatchOrder, Loader
from nbcompile.training.methods.teachers import averaged_over
from nbcompile.training.seeds import derived_seed
from nbcompile.training.stored.record import StoredRecord, alone_with, checksum_of_weights, read_record
from nbcompile.training.stored.views import (
    AnsweredViews,
    ShownView,
    check_rows,
    packed,
    read_rows,
    row_type,
    write_rows,
)

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from nbcompile.training.options.config import TrainConfig

TOP = 20
"""Classes that are kept of an answer, in a new folder."""

SEED = 0
"""Of the views of a new folder: the same for all runs, whatever their seeds."""


class StoredLabels:
    """The folder, as one run uses it.

    Args:
        config: of the run.
        data: the data set.
        teacher: answers where nobody has; frozen. None where all answers are there.
        fabric: the engine.
        run: names the run in the folder's record.
        training: multiply-accumulates of the teacher's own training, where they are known.

    Raises:
        UsageError: if the folder holds something else than this run needs, or no teacher is there who could answer.
    """

    def __init__(
        self,
        config: "TrainConfig",
        data: Data,
        teacher: nn.Module | None,
        fabric: "Fabric",
        run: Path,
        training: int | None = None,
    ) -> None:
        if not isinstance(data.train, Views):
            raise UsageError(f"stored_labels needs images whose views can be repeated, and those of {data.name} cannot")
        self.folder = Path(str(config.stored_labels))
        self.images = AnsweredViews(data.train, len(data.classes))
        self._views, self._seed, self._config = data.train, config.seed, config
        self._fabric, self._run = fabric, str(run.resolve())
        self._count, self._first = config.views, derived_seed(config.seed) % config.views
        self._teacher = None if teacher is None else averaged_over(teacher, 1.0)
        self._told = self._what_is_told(data)
        self.record = read_record(self.folder)
        if self.record is None:
            self._need_teacher(0)
            self.record = self._new_record(data, training)
        self.record.check_same(self._told, self.folder)
        self._type = row_type(data.train.draw(0).shape[1], self.record.top)
        self._look_through()

    def begin(self, *, resumed: bool) -> None:
        """The run uses the folder, which is made where it is missing.

        Raises:
            UsageError: if it cannot be, or another run has made it meanwhile, of something else.
        """
        with alone_with(self.folder):
            self._note(0 if resumed else None)

    def turn_to(self, epoch: int) -> None:
        """The images are those of ``epoch``, counted from 0; the teacher answers first, where nobody has.

        Raises:
            UsageError: if the answers are damaged.
        """
        path = self._path((self._first + epoch) % self._count)
        if not path.exists():
            with alone_with(self.folder, path.stem):  # another run, or process, may have been at it
                if not path.exists():
                    self._need_teacher(self._stored())
                    write_rows(path, self._answered(int(path.stem.removeprefix("view-"))))
                    with alone_with(self.folder):
                        self._note(1)
        rows = read_rows(path, len(self.images), self._type)
        check_rows(path, rows, self.images.classes)
        self.images.show(rows)

    @property
    def spent(self) -> int:
        """Multiply-accumulates of the teacher's answers to this run."""
        record = self._known()
        return record.runs.get(self._run, 0) * record.count * record.macs

    @property
    def training(self) -> int | None:
        """Multiply-accumulates of the teacher's own training, where it is known."""
        return self._known().training

    def shared(self) -> dict[str, int]:
        """What the folder has cost, and how many runs share it."""
        record, views = self._known(), self._stored()
        return {"views": views, "macs": views * record.count * record.macs, "runs": len(record.runs)}

    def _known(self) -> StoredRecord:
        record = read_record(self.folder) or self.record
        assert record is not None
        return record

    def _note(self, more: int | None) -> None:
        """Count the views that this run had answered; None begins at 0."""
        record = self._known()
        record.check_same(self._told, self.folder)
        answered = 0 if more is None else record.runs.get(self._run, 0) + more
        dataclasses.replace(record, runs=record.runs | {self._run: answered}).write(self.folder)

    def _what_is_told(self, data: Data) -> dict[str, Any]:
        """What a record must agree with."""
        assert isinstance(data.train, Views)
        told: dict[str, Any] = {
            "classes": data.classes,
            "shape": tuple(data.shape),
            "augmentation": data.train.augmentation,
            "images": data.train.checksum(),
        }
        if self._teacher is not None:
            told["teacher"] = checksum_of_weights(self._teacher)
        if self._config.stored_top is not None:
            told["top"] = min(self._config.stored_top, len(data.classes))
        return told

    def _new_record(self, data: Data, training: int | None) -> StoredRecord:
        assert self._teacher is not None
        return StoredRecord(
            **{"top": min(TOP, len(data.classes))} | self._told,
            data=data.name,
            count=len(data.train),
            named=str(self._config.teacher),
            macs=cost(self._teacher, torch.zeros(1, *data.shape)).macs,
            training=training,
            seed=SEED,
        )

    def _need_teacher(self, stored: int) -> None:
        if self._teacher is None:
            fewer = f", or say stored_views {stored}" if stored else ""
            raise UsageError(
                f"{self.folder} holds {stored} of the {self._count} views that the run needs: give the teacher{fewer}"
            )

    def _look_through(self) -> None:
        """Find out before anything is trained whether the views are there, and whole."""
        paths = [self._path(view) for view in range(self._count)]
        there = [path for path in paths if path.exists()]
        for path in there:
            read_rows(path, len(self.images), self._type)
        if len(there) < len(paths):
            self._need_teacher(len(there))

    def _stored(self) -> int:
        return len(list(self.folder.glob("view-*.npy")))

    def _path(self, view: int) -> Path:
        return self.folder / f"view-{view:04d}.npy"

    def _answered(self, view: int) -> np.ndarray:
        """The rows of a view, which the teacher answers, in evaluation mode and single precision."""
        assert self._teacher is not None
        assert self.record is not None
        with forked_rng():
            torch.manual_seed(derived_seed(self.record.seed, view))
            drawn = self._views.draw(len(self._views))
        order = BatchOrder(len(self._views), self._config.batch_size, seed=None)
        shown = Loader(ShownView(self._views, drawn), order, self._config.num_workers, self._fabric.to_device)
        self._teacher.to(self._fabric.device)
        with torch.no_grad():
            answers: list[Tensor] = [self._teacher(batch.images).float() for batch in shown.epoch(0)]
        return packed(drawn, torch.cat(answers), self.record.top)
