"""What a training run tells while it runs, and what it gives back."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from nbcompile.training.compute import TrainingCost


@dataclass(frozen=True, kw_only=True)
class Started:
    """The run begins, or goes on.

    Attributes:
        method: its name.
        data: the data set's name.
        metric: what accuracies are: ``accuracy``, or ``AP50`` in detection.
        epochs: of the whole run.
        macs: the budget that they were chosen for; None where there is none.
        done: epochs that a resumed run has behind it; 0 for a new one.
        steps_per_epoch: optimiser steps.
        run_dir: where checkpoints and metrics go.
        resume_found_nothing: True if resuming was asked for and there was no checkpoint yet.
        note: what is said of the data set; empty if nothing.
    """

    method: str
    data: str
    metric: str = "accuracy"
    epochs: int
    macs: float | None = None
    done: int
    steps_per_epoch: int
    run_dir: Path
    resume_found_nothing: bool
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """One optimiser step is done.

    Attributes:
        epoch: counted from 1.
        step: optimiser steps since the beginning of the run.
        loss: mean of this batch, in nats, over all processes.
        accuracy: of the epoch so far on this process, in [0, 1].
        slope: of the inserted activations after the step; None where there are none.
        lr: of the step.
        phase: what the method is doing.
    """

    epoch: int
    step: int
    loss: float
    accuracy: float
    slope: float | None
    lr: float
    phase: str


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch is done: one line of metrics.jsonl.

    Attributes:
        epoch: counted from 1.
        step: optimiser steps since the beginning of the run.
        phase: what the method was doing.
        loss: mean training loss, in nats, over all processes.
        train_accuracy: on augmented images, during the epoch, in [0, 1].
        val_accuracy: on the held-out images, after the epoch, in [0, 1]; of the average, where there is one.
        slope: at the end; None where the method has none.
        lr: of the last step.
        seconds: wall time of the epoch, measuring included.
        measured: what the method found out, by name.
    """

    epoch: int
    step: int
    phase: str
    loss: float
    train_accuracy: float
    val_accuracy: float
    slope: float | None
    lr: float
    seconds: float
    measured: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished run.

    Attributes:
        method: its name.
        data: the data set's name.
        metric: what accuracies are: ``accuracy``, or ``AP50`` in detection, where those of training are the share of
            boxes that their own cells find.
        history: one entry per epoch, those before a resume included.
        accuracy: on the held-out images, after the last epoch, in [0, 1].
        fused_accuracy: of the fused network on the same images; None where there is nothing to fuse.
        simulated_accuracy: with the rounding of its int8 file, after a finish for that; else None.
        onnx_accuracy: of ``tiny.onnx`` in ONNX Runtime on the same images; None where it was not asked for, or see
            ``notes``.
        int8_accuracy: of ``tiny.tflite`` in LiteRT; likewise.
        notes: why a file could not be checked, one sentence each.
        seconds: wall time of all epochs.
        cost: multiply-accumulates of its training.
        advice: what docs/accuracy.md recommends at that cost.
        teacher_cost: multiply-accumulates of the teachers' own training, which are not in ``cost``; None where there is
            no teacher, or nobody knows.
        stored_labels: of the folder of the teacher's answers: how many ``views`` it holds, the ``macs`` they took, and
            how many ``runs`` share them; None where there is none.
        output: the trained file.
        run_dir: config, metrics, checkpoints and curves; see ``run_folder.py``.
        model: what was trained, or the average of its last weights, in eval mode on the CPU (netbooster: the linear
            giant).
    """

    method: str
    data: str
    metric: str = "accuracy"
    history: tuple[Epoch, ...]
    accuracy: float
    fused_accuracy: float | None
    simulated_accuracy: float | None = None
    onnx_accuracy: float | None = None
    int8_accuracy: float | None = None
    notes: tuple[str, ...] = ()
    seconds: float
    cost: "TrainingCost"
    advice: str
    teacher_cost: int | None = None
    stored_labels: dict[str, int] | None = None
    output: Path
    run_dir: Path
    model: nn.Module

    def to_json(self) -> dict[str, Any]:
        """Everything but the model."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "model"}
        history = [epoch.to_json() for epoch in self.history]
        paths = {"output": str(self.output), "run_dir": str(self.run_dir)}
        return plain | {"history": history, "cost": self.cost.to_json() | {"in_words": str(self.cost)}} | paths


Event = Started | Stepped | Epoch | TrainResult

Listener = Callable[[Event], None]
"""Who is told."""
