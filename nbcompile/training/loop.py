"""The one loop that all methods share."""

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from nbcompile.checkpoint import check_output
from nbcompile.core.blocks import sites
from nbcompile.core.copies import copied
from nbcompile.core.errors import UsageError
from nbcompile.core.example import origin_of
from nbcompile.core.files import require_own_files
from nbcompile.core.wrappers import require_loaded, unwrap
from nbcompile.training.accuracy import accuracy
from nbcompile.training.batch import Batch
from nbcompile.training.begin import set_up
from nbcompile.training.check_fits import check_fits
from nbcompile.training.compute import training_cost
from nbcompile.training.data.base import Data
from nbcompile.training.data.load import load_data
from nbcompile.training.engine import start_fabric
from nbcompile.training.epoch_meter import Meter
from nbcompile.training.failures import explained
from nbcompile.training.finish import finish
from nbcompile.training.methods import SELF
from nbcompile.training.methods.passes import Passes
from nbcompile.training.new_head import check_coding, with_fitting_head
from nbcompile.training.options.config import TrainConfig
from nbcompile.training.outputs.records import Epoch, Event, Listener, Started, TrainResult
from nbcompile.training.outputs.run_folder import RunFolder
from nbcompile.training.seeds import seed_everything
from nbcompile.training.session import Session
from nbcompile.wide.widths import widths_of

SLOW = 10.0
"""Seconds of an epoch after which the picture of the curves is drawn anew; others wait for the end."""


def train(
    model: nn.Module,
    config: TrainConfig,
    output: str | Path,
    run_dir: str | Path | None = None,
    resume: bool = False,
    on_event: Listener | None = None,
    teacher: nn.Module | None = None,
    check_export: bool = False,
    data: Data | None = None,
) -> TrainResult:
    """Train a copy of ``model`` by the reference recipe and write the trained file.

    The global generators of python, numpy and torch are reseeded from ``config.seed`` at every epoch.

    Args:
        model: a network with one logit per class of the data set, unless ``config.new_head``; for netbooster also a
            giant.
        config: the recipe.
        output: the trained file (``trained.pt``), written when the last epoch is done.
        run_dir: folder of checkpoints and metrics; None is ``trained-run`` beside ``trained.pt``.
        resume: go on from the run folder's checkpoint, if there is one. On the CPU the numbers are those of
            a run that was never stopped, to the bit.
        on_event: told what happens, on the first process only.
        teacher: for a method that distils, unless ``config.teacher`` is ``self``; one logit per class.
        check_export: at the end also write ``tiny.onnx`` and ``tiny.tflite`` (int8) into the run folder, and measure
            them in their own runtimes on the same images.
        data: what ``config.data`` names, where it is loaded already; None loads it.

    Returns:
        The history, the accuracies, and the trained network.

    Raises:
        UsageError: if the network does not fit the data, or data, run folder or ``output`` are unusable.
        CheckpointError: if the checkpoint to resume from cannot be read.
        NBCompileError: if the loss is no longer a finite number, memory is short, another process ends, or the
            network cannot be compiled; the checkpoint of the last finished epoch is kept.
    """
    output = Path(output)
    check_output(output)
    model = unwrap(model)
    require_loaded(model, "train")
    config = config.for_network(giant=bool(sites(model)), wide=widths_of(model) is not None)
    folder = RunFolder.beside(output, run_dir)
    require_own_files([output, *folder.files])
    checkpoint = folder.open(config, resume=resume)
    fabric = start_fabric(config)
    with explained(config, folder):
        data = load_data(config, _input_side(model)) if data is None else data
        model, data = with_fitting_head(model, data, config)
        check_fits(model, data)
        tell = on_event if on_event is not None and fabric.is_global_zero else _tell_nobody
        if teacher is not None:
            check_fits(teacher, data, f"the teacher {config.teacher}")
            check_coding(teacher, data, f"the teacher {config.teacher}", anchors=True)
        session = set_up(fabric, config, model, data, folder, checkpoint, tell, _frozen(teacher, config))
        images = len(session.train) * config.batch_size
        spent = training_cost(model, config, torch.zeros(1, *data.shape), images, teacher)
        fabric.barrier()  # every process has read the folder before the first one writes to it
        if fabric.is_global_zero:
            folder.begin(config, session.history)
        tell(
            Started(
                method=config.method_row.name,
                data=data.name,
                metric=data.task.metric,
                epochs=config.epochs,
                done=len(session.history),
                steps_per_epoch=len(session.train),
                run_dir=folder.path,
                resume_found_nothing=resume and checkpoint is None,
            )
        )
        for epoch in range(len(session.history), config.epochs):
            _run_epoch(session, epoch)
        return finish(session, data, output, check_export, spent)


def _run_epoch(session: Session, epoch: int) -> None:
    """Train, measure, write the checkpoint."""
    began = time.perf_counter()
    session.advance(epoch)
    seed_everything(session.config.seed, epoch, session.fabric.global_rank)
    loss, train_accuracy = _train_epoch(session, epoch)
    record = Epoch(
        epoch=epoch + 1,
        step=session.step,
        phase=session.method.phase(epoch),
        loss=loss,
        train_accuracy=train_accuracy,
        val_accuracy=accuracy(session.fabric, session.network(), session.val, session.method.task),
        slope=session.method.slope,
        lr=session.schedule.lr(session.step - 1),
        seconds=time.perf_counter() - began,
        measured=session.method.measured(),
    )
    session.history.append(record)
    if session.fabric.is_global_zero:
        session.folder.keep(session.network(), session.history)
        session.folder.save(session.state_dict(), record)
        if record.seconds > SLOW:
            session.folder.draw(session.history)
    session.tell(record)


def _train_epoch(session: Session, epoch: int) -> tuple[float, float]:
    """Mean loss and accuracy of one pass over the training images, over all processes."""
    session.model.train()
    meter = Meter(session, epoch)
    for batch in session.train.epoch(epoch):
        lr = session.schedule.lr(session.step)
        for group in session.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        loss, right = _gradients(session, batch)
        session.method.before_step(session.bare)
        session.optimizer.step()
        session.optimizer.zero_grad()
        session.method.after_step()
        if session.average is not None:
            session.average.update(session.bare)
        session.step += 1
        meter.add(lr, loss, right, len(batch.labels))
    return meter.finish()


def _gradients(session: Session, batch: Batch) -> tuple[Tensor, Tensor]:
    """Compute the gradients of a batch, part by part: its mean loss, and how many images were named rightly."""
    parts = session.config.accumulate
    losses, right = [], []
    for i, part in enumerate(batch.parts(parts)):
        passes = Passes(session.fabric, session.model, 1 / parts, last=i == parts - 1)
        loss, logits = session.method.learn(passes, part)
        losses.append(loss)
        right.append(session.method.task.hits(logits, part.labels))
    return torch.stack(losses).sum(), torch.stack(right).sum()


def _frozen(teacher: nn.Module | None, config: TrainConfig) -> nn.Module | None:
    """A copy of ``teacher`` that answers and does not learn.

    Raises:
        UsageError: if the method needs one and there is none, or has no use for it.
    """
    foreign = config.distils and config.teacher != SELF
    if foreign == (teacher is None):
        raise UsageError(
            f"method '{config.method}' needs teacher=, a network" if foreign else "teacher= goes with a foreign teacher"
        )
    return None if teacher is None else copied(teacher, training=False).requires_grad_(False)


def _input_side(model: nn.Module) -> int | None:
    """Side of the square input that ``model`` remembers, in pixels; None if it remembers none."""
    origin = origin_of(model)
    if origin is None or len(origin.inputs[0].shape) != 4:
        return None
    height, width = origin.inputs[0].shape[2:]
    return width if height == width else None


def _tell_nobody(event: Event) -> None:
    """The listener of a run that nobody listens to."""
