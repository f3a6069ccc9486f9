"""A session made from nothing, or from a checkpoint."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nbcompile.core.blocks import sites
from nbcompile.core.copies import copied
from nbcompile.core.errors import UsageError
from nbcompile.core.example import Origin, TensorSpec, origin_of, remember
from nbcompile.expansion import record_again
from nbcompile.training.batch import Batch
from nbcompile.training.data.base import Data, Images
from nbcompile.training.data.unlabeled.beside import with_unlabeled
from nbcompile.training.learning_rate import WarmupCosine
from nbcompile.training.loader import Batches, BatchOrder, Loader
from nbcompile.training.options.config import TrainConfig
from nbcompile.training.outputs.records import Epoch, Listener
from nbcompile.training.outputs.run_folder import RunFolder
from nbcompile.training.seeds import seed_everything
from nbcompile.training.session import Session, advanced, wrapped
from nbcompile.wide.widths import widths_of
from nbcompile.widening import describe_again

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from nbcompile.training.stored.labels import StoredLabels


def set_up(
    fabric: "Fabric",
    config: TrainConfig,
    model: nn.Module,
    data: Data,
    folder: RunFolder,
    checkpoint: dict[str, Any] | None,
    tell: Listener,
    teacher: nn.Module | None = None,
    stored: "StoredLabels | None" = None,
) -> Session:
    """A session on a copy of ``model``, after the last epoch of ``checkpoint`` if there is one.

    Raises:
        UsageError: if the checkpoint holds another network, or is of other images.
    """
    known = described(data)
    if checkpoint is not None:
        _require_same_data(checkpoint.get("data"), known, data.name, folder)
    train, val = loader(fabric, config, data.train, shuffle=True), loader(fabric, config, data.val)
    steps = len(train)
    batches: Batches = with_unlabeled(fabric, config, data, train) if config.mimics else train
    history = [Epoch(**epoch) for epoch in checkpoint["history"]] if checkpoint is not None else []
    method = config.method_row.start(config, steps, teacher)
    method.task = data.task
    seed_everything(config.seed)  # on all processes alike: the method may draw layers
    bare = method.prepare(_copied(model, data))
    done = min(len(history), config.epochs)  # those of the finish train another network
    for epoch in range(max(1, done)):
        bare = advanced(method, bare, epoch)
        method.attach(bare, epoch)
    if checkpoint is not None:
        _load_weights(bare, checkpoint, folder)
        method.load_state_dict(checkpoint["method"])
    if method.teacher is not None:
        method.teacher.to(fabric.device)
    trained, optimizer, average = wrapped(fabric, method, bare)
    if checkpoint is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])
        if average is not None:
            average.load_state_dict(checkpoint["average"])
    return Session(
        fabric=fabric,
        config=config,
        method=method,
        model=trained,
        bare=bare,
        optimizer=optimizer,
        average=average,
        schedule=_schedule(config, steps),
        train=batches,
        val=val,
        tell=tell,
        folder=folder,
        history=history,
        step=done * steps,
        stored=stored,
        resize=data.resize,
        data=known,
    )


def images_per_epoch(config: TrainConfig, data: Data) -> int:
    """How many images an epoch trains on: those of whole batches.

    Raises:
        UsageError: if there is not one whole batch.
    """
    steps = len(BatchOrder(len(data.train), config.batch_size, seed=config.seed))
    if steps == 0:
        raise UsageError(f"batch_size {config.batch_size} is more than the {len(data.train)} images to train on")
    return steps * config.batch_size


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

    def place(batch: Batch) -> Batch:
        batch = fabric.to_device(batch)
        if not config.channels_last:
            return batch
        return batch._replace(images=batch.images.contiguous(memory_format=torch.channels_last))

    return Loader(images, order, config.num_workers, place)


def _copied(model: nn.Module, data: Data) -> nn.Module:
    """A copy of ``model`` that remembers what it is trained on."""
    model = copied(model)
    origin = origin_of(model)
    remember(model, Origin((TensorSpec((1, *data.shape)),), origin.model if origin else None, data.preprocessing))
    if widths_of(model) is not None:
        describe_again(model)
    elif sites(model):
        record_again(model)
    return model


def described(data: Data) -> dict[str, Any]:
    """What tells images from others, of the same name, at the cost of no look at them."""
    return {
        "images to train on": len(data.train),
        "images to measure on": len(data.val),
        "classes": [str(one) for one in data.classes],
    }


def _require_same_data(before: dict[str, Any] | None, now: dict[str, Any], name: str, folder: RunFolder) -> None:
    for what, value in (before or now).items():  # None: of a run before they were written down
        if now[what] != value:
            was, has = (f"{x:,}" if isinstance(x, int) else ", ".join(x) for x in (value, now[what]))
            raise UsageError(
                f"{name} had other {what} when {folder.path} was started: {was}, not {has}: resume with the same "
                "images, or choose another run folder"
            )


def _load_weights(model: nn.Module, checkpoint: dict[str, Any], folder: RunFolder) -> None:
    try:
        model.load_state_dict(checkpoint["model"])
    except RuntimeError as error:
        raise UsageError(
            f"{folder.checkpoint} holds another network than {type(model).__name__}: "
            f"resume with the same MODEL, or choose another run folder"
        ) from error
