"""Everything that one run works with, made once: from nothing, or from a checkpoint."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import SGD

from nbcompile.core.errors import UsageError
from nbcompile.core.example import Origin, TensorSpec, origin_of, remember
from nbcompile.training.config import TrainConfig
from nbcompile.training.data import BatchOrder, Data, Images, Loader, seed_everything
from nbcompile.training.methods import METHODS, Method
from nbcompile.training.records import Epoch, Event
from nbcompile.training.runs import RunFolder
from nbcompile.training.schedule import WarmupCosine

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Listener = Callable[[Event], None]


@dataclass(kw_only=True)
class Session:
    """A run in memory.

    Attributes:
        fabric: the engine.
        config: the recipe.
        method: what is done differently.
        model: as Fabric wraps it; every training step goes through it.
        bare: the network inside it; measured and saved.
        optimizer: as Fabric wraps it.
        schedule: of the learning rate.
        train: batches to train on.
        val: batches to measure on.
        tell: told what happens; does nothing on all processes but the first.
        folder: the run on disk.
        history: one entry per finished epoch.
        step: finished optimiser steps.
    """

    fabric: "Fabric"
    config: TrainConfig
    method: Method
    model: Any
    bare: nn.Module
    optimizer: Any
    schedule: WarmupCosine
    train: Loader
    val: Loader
    tell: Listener
    folder: RunFolder
    history: list[Epoch]
    step: int

    def advance(self, epoch: int) -> None:
        """Train what the method trains in ``epoch``: with a fresh optimiser, where that is another network."""
        changed = _advanced(self.method, self.bare, epoch)
        if changed is not self.bare:
            self.bare = changed
            self.model, self.optimizer = self.fabric.setup(changed, _optimizer(self.method, changed))
        self.method.attach(self.bare, epoch)

    def state_dict(self) -> dict[str, Any]:
        """What ``set_up`` needs to go on from here."""
        return {
            "config": self.config.to_json(),
            "epoch": len(self.history),
            "model": self.bare.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "history": [epoch.to_json() for epoch in self.history],
        }


def set_up(
    fabric: "Fabric",
    config: TrainConfig,
    model: nn.Module,
    data: Data,
    folder: RunFolder,
    checkpoint: dict[str, Any] | None,
    tell: Listener,
    teacher: nn.Module | None = None,
) -> Session:
    """A session on a copy of ``model``, after the last epoch of ``checkpoint`` if there is one.

    Raises:
        UsageError: if the training set is smaller than a batch, or the checkpoint holds another network.
    """
    train, val = loader(fabric, config, data.train, shuffle=True), loader(fabric, config, data.val)
    steps = len(train)
    if steps == 0:
        raise UsageError(f"batch_size {config.batch_size} is more than the {len(data.train)} images to train on")
    history = [Epoch(**epoch) for epoch in checkpoint["history"]] if checkpoint is not None else []
    method = METHODS[config.method](config, steps, teacher)
    bare = method.prepare(_copied(model, data))
    for epoch in range(max(1, len(history))):
        bare = _advanced(method, bare, epoch)
        method.attach(bare, epoch)
    if checkpoint is not None:
        _load_weights(bare, checkpoint, folder)
        method.load_state_dict(checkpoint["method"])
    optimizer = _optimizer(method, bare)
    wrapped, optimizer = fabric.setup(bare, optimizer)
    if checkpoint is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])
    return Session(
        fabric=fabric,
        config=config,
        method=method,
        model=wrapped,
        bare=bare,
        optimizer=optimizer,
        schedule=_schedule(config, steps),
        train=train,
        val=val,
        tell=tell,
        folder=folder,
        history=history,
        step=len(history) * steps,
    )


def _advanced(method: Method, model: nn.Module, epoch: int) -> nn.Module:
    seed_everything(method.config.seed, epoch)  # on all processes alike: the method may add layers
    return method.advance(model, epoch)


def _optimizer(method: Method, model: nn.Module) -> SGD:
    c = method.config
    return SGD(method.parameter_groups(model), lr=c.lr, momentum=c.momentum, nesterov=c.momentum > 0)


def _schedule(config: TrainConfig, steps: int) -> WarmupCosine:
    """Of the learning rate, for epochs of ``steps`` optimiser steps."""
    return WarmupCosine(
        peak=config.lr,
        warmup=round(config.warmup * steps),
        steps=config.epochs * steps,
        restarts=[epoch * steps for epoch in config.restarts],
    )


def loader(fabric: "Fabric", config: TrainConfig, images: Images, *, shuffle: bool = False) -> Loader:
    """This process's share of the batches of ``images``."""
    order = BatchOrder(
        len(images),
        config.batch_size,
        seed=config.seed if shuffle else None,
        rank=fabric.global_rank,
        world=fabric.world_size,
    )
    return Loader(images, order, config.num_workers, fabric.to_device)


def _copied(model: nn.Module, data: Data) -> nn.Module:
    """A copy of ``model`` that remembers what it is trained on."""
    copied, origin = copy.deepcopy(model), origin_of(model)
    spec = TensorSpec((1, *data.shape))
    remember(copied, Origin((spec,), origin.model if origin else None, data.preprocessing))
    return copied


def _load_weights(model: nn.Module, checkpoint: dict[str, Any], folder: RunFolder) -> None:
    try:
        model.load_state_dict(checkpoint["model"])
    except RuntimeError as error:
        raise UsageError(
            f"{folder.checkpoint} holds another network than {type(model).__name__}: "
            f"resume with the same MODEL, or choose another run folder"
        ) from error
