"""Everything that one run works with."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import SGD

from nbcompile.training.methods.muon import SGDWithMuon, with_matrices
from nbcompile.training.methods.passes import Passes
from nbcompile.training.recorded import Recorded, recorder_on
from nbcompile.training.seeds import seed_everything
from nbcompile.training.weight_average import Average

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lightning.fabric import Fabric

    from nbcompile.training.batch import Batch
    from nbcompile.training.learning_rate import WarmupCosine
    from nbcompile.training.loader import Batches, Loader
    from nbcompile.training.methods.base import Method
    from nbcompile.training.options.config import TrainConfig
    from nbcompile.training.outputs.records import Epoch, Listener
    from nbcompile.training.outputs.run_folder import RunFolder
    from nbcompile.training.recorded import MakesGradients, StepOutcome
    from nbcompile.training.stored.labels import StoredLabels


@dataclass(kw_only=True)
class Session:
    """A run in memory.

    Attributes:
        fabric: the engine.
        config: the recipe.
        method: what is done differently.
        model: as Fabric wraps it, compiled if that is asked for; every training step goes through it.
        bare: the network inside it.
        optimizer: as Fabric wraps it.
        average: of the weights of ``bare``; None where the last ones count.
        schedule: of the learning rate.
        train: batches to train on.
        val: batches to measure on.
        tell: told what happens; does nothing on all processes but the first.
        folder: the run on disk.
        history: one entry per finished epoch.
        step: finished optimiser steps.
        stored: the teacher's answers, where they are kept in a folder.
        resize: as of `Data`.
        data: what the images are, to know them again.
    """

    fabric: "Fabric"
    config: "TrainConfig"
    method: "Method"
    model: Any
    bare: nn.Module
    optimizer: Any
    average: Average | None
    schedule: "WarmupCosine"
    train: "Batches"
    val: "Loader"
    tell: "Listener"
    folder: "RunFolder"
    history: "list[Epoch]"
    step: int
    stored: "StoredLabels | None" = None
    resize: "Callable[[int], None] | None" = None
    data: "Mapping[str, Any] | None" = None
    _recorded: "tuple[str, nn.Module, Recorded] | None" = None

    def advance(self, epoch: int) -> None:
        """Train what the method trains in ``epoch``: with a fresh optimiser, where that is another network."""
        side = self.config.side_in(epoch)
        if self.config.sizes and self.resize is not None and side is not None:
            self.resize(side)
        changed = advanced(self.method, self.bare, epoch)
        if changed is not self.bare:
            self.bare = changed
            self.model, self.optimizer, self.average = wrapped(self.fabric, self.method, changed)
        self.method.average = self.averaged()
        self.method.attach(self.bare, epoch)
        if self.stored is not None:
            self.stored.turn_to(epoch)

    def learn(self, batch: "Batch") -> "StepOutcome":
        """Make the gradients of a batch, part by part: its mean loss, and how many images were named rightly."""
        self.optimizer.zero_grad()
        parts = self.config.accumulate
        losses, right = [], []
        for i, part in enumerate(batch.parts(parts)):
            passes = Passes(self.fabric, self.model, 1 / parts, last=i == parts - 1)
            loss, logits = self.method.learn(passes, part)
            losses.append(loss)
            right.append(self.method.task.hits(logits, part.labels))
        self.method.before_step(self.bare)
        return torch.stack(losses).sum(), torch.stack(right).sum()

    def learning(self, epoch: int) -> "MakesGradients":
        """:meth:`learn`, or what replays it: recorded once a phase."""
        if not self.config.cuda_graphs:
            return self.learn
        phase, known = self.phase(epoch), self._recorded
        if known is None or known[:2] != (phase, self.bare):
            self._recorded = known = phase, self.bare, Recorded(self.learn, self.bare, recorder_on(self.fabric.device))
        return known[2]

    def phase(self, epoch: int) -> str:
        """What happens in ``epoch``, counted from 0, in a few words."""
        said = self.method.phase(epoch)
        return f"{said}, {self.config.side_in(epoch)} px" if self.config.sizes else said

    def network(self) -> nn.Module:
        """The network that is measured and saved: with averaged weights, where there is an average."""
        average = self.averaged()
        return self.method.kept(self.bare if average is None else average)

    def saved(self) -> nn.Module:
        """The network that is written."""
        return self.network()

    def rivals(self) -> "Sequence[Epoch]":
        """The epochs of which the best one is kept."""
        return self.history

    def averaged(self) -> nn.Module | None:
        """``bare`` with averaged weights, where there is an average."""
        if self.average is None:
            return None
        self.average.follow(self.bare)
        return self.average.model

    def state_dict(self) -> dict[str, Any]:
        """What ``set_up`` needs to go on from here."""
        return {
            "config": self.config.to_json(),
            "epoch": len(self.history),
            "model": self.bare.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "history": [epoch.to_json() for epoch in self.history],
            "data": self.data,
        }


def advanced(method: "Method", model: nn.Module, epoch: int) -> nn.Module:
    """The network that ``epoch`` trains, from the one before it."""
    seed_everything(method.config.seed, epoch)  # on all processes alike: the method may add layers
    return method.advance(model, epoch)


def wrapped(fabric: "Fabric", method: "Method", model: nn.Module) -> tuple[Any, Any, Average | None]:
    """``model`` and a fresh optimiser as Fabric wraps them, and a fresh average."""
    c = method.config
    if c.channels_last:
        model.to(memory_format=torch.channels_last)
    optimizer: Any = _optimizer(method, model)
    trained: Any = torch.compile(model) if c.compile else model
    trained, optimizer = fabric.setup(trained, optimizer)
    decay = c.ema_decay(method.steps_per_epoch)
    return trained, optimizer, Average(model, decay) if decay else None


def _optimizer(method: "Method", model: nn.Module) -> SGD:
    c, groups = method.config, method.parameter_groups(model)
    if c.optimizer == "muon":
        return SGDWithMuon(with_matrices(groups, model), lr=c.lr, momentum=c.momentum, nesterov=c.momentum > 0)
    fused = True if c.cuda_graphs else None  # one kernel, where Python is what a step waits for
    return SGD(groups, lr=c.lr, momentum=c.momentum, nesterov=c.momentum > 0, fused=fused)
