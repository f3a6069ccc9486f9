"""The one loop that all methods share."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nbcompile.checkpoint import check_output
from nbcompile.core.blocks import sites
from nbcompile.core.copies import copied
from nbcompile.core.errors import UsageError
from nbcompile.core.example import origin_of
from nbcompile.core.files import require_own_files
from nbcompile.core.wrappers import require_loaded, unwrap
from nbcompile.training.accuracy import accuracy
from nbcompile.training.begin import images_per_epoch, loader, set_up
from nbcompile.training.check_fits import check_fits
from nbcompile.training.compute import Prices, TrainingCost, warning, within_budget
from nbcompile.training.data.base import Data
from nbcompile.training.data.load import hold_on, load_data
from nbcompile.training.data.two_views import TwoViews
from nbcompile.training.engine import start_fabric
from nbcompile.training.epoch_meter import Meter
from nbcompile.training.failures import explained
from nbcompile.training.finish import finish
from nbcompile.training.int8.finish import begin_finish, require_finish
from nbcompile.training.methods import SELF
from nbcompile.training.new_head import check_coding, with_fitting_head
from nbcompile.training.options.config import TrainConfig
from nbcompile.training.options.rules import check_boxes, without_unused
from nbcompile.training.outputs.records import Epoch, Event, Listener, Started, TrainResult
from nbcompile.training.outputs.run_folder import RunFolder
from nbcompile.training.outputs.teacher_cost import cost_of_teachers
from nbcompile.training.recorded import recorder_on
from nbcompile.training.seeds import seed_everything
from nbcompile.training.session import Session
from nbcompile.training.stored.labels import StoredLabels
from nbcompile.training.tasks.classification import CLASSIFICATION
from nbcompile.wide.widths import widths_of

log = logging.getLogger("nbcompile")

SLOW = 10.0
"""Seconds of an epoch after which the picture of the curves is drawn anew; others wait for the end."""


def train(
    model: nn.Module,
    config: TrainConfig,
    output: str | Path,
    run_dir: str | Path | None = None,
    resume: bool = False,
    on_event: Listener | None = None,
    teacher: nn.Module | Sequence[nn.Module] | None = None,
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
        teacher: for a method that distils, unless ``config.teacher`` is ``self``, or all its answers are stored; one
            logit per class. Of several the answers are averaged; for ``rco`` they are the anchors, in order.
        check_export: at the end also write ``tiny.onnx`` and ``tiny.tflite`` (int8) into the run folder, and measure
            them in their own runtimes on the same images.
        data: what ``config.data`` names, where it is loaded already; None loads it. With ``device_images`` its images
            stay on the device.

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
    config, unused = without_unused(config.for_network(giant=bool(sites(model)), wide=widths_of(model) is not None))
    folder = RunFolder.beside(output, run_dir)
    require_own_files([output, *folder.files])
    checkpoint = folder.open(config, resume=resume)
    fabric = start_fabric(config)
    with explained(config, folder):
        model, data = _fitting(model, data, config, fabric.device)
        tell = on_event if on_event is not None and fabric.is_global_zero else _tell_nobody
        taught = _frozen(teacher, config, data)
        asked = None if taught is None else copied(taught)  # stays on the CPU, where costs are counted
        prices = Prices(model, torch.zeros(1, *data.shape), images_per_epoch(config, data), asked)
        config = within_budget(config, prices, None if checkpoint is None else checkpoint["config"]["epochs"])
        stored = None
        if config.stored_labels is not None:
            cost = cost_of_teachers(config.teachers)
            stored, taught = StoredLabels(config, data, taught, fabric, folder.path, cost), None
        seen = stored.images if stored is not None else data.train if config.same_view else TwoViews(data.train)
        shown = replace(data, train=seen)
        session = set_up(fabric, config, model, shown, folder, checkpoint, tell, taught, stored)
        spent = prices.of(config)
        _begin(session, data, spent, unused, resumed_nothing=resume and checkpoint is None)
        session = _learned(session, data, checkpoint)
        if stored is not None:
            spent = replace(spent, teacher=stored.spent)
        return finish(session, data, output, check_export, spent)


def _fitting(model: nn.Module, data: Data | None, config: TrainConfig, device: torch.device) -> tuple[nn.Module, Data]:
    """``model`` and what it learns from, which fit each other and all that ``config`` asks for."""
    data = load_data(config, _input_side(model)) if data is None else data
    if data.task is not CLASSIFICATION:
        check_boxes(config, data.name)
    model, data = with_fitting_head(model, data, config)
    check_fits(model, data, sizes=config.sizes)
    if config.int8:
        require_finish(model, data, config)
    if config.cuda_graphs:
        recorder_on(device)
    if config.device_images:
        hold_on(data, device)
    return model, data


def _begin(session: Session, data: Data, spent: TrainingCost, unused: str, *, resumed_nothing: bool) -> None:
    """Make the run folder, and say what begins, and which options are ``unused``."""
    config, main = session.config, session.fabric.is_global_zero
    if session.stored is not None and main:
        session.stored.begin(resumed=bool(session.history))
    session.fabric.barrier()  # every process has read the folder before the first one writes to it
    if main:
        if unused:
            log.warning("method '%s' has no use for %s: left aside", config.method, unused)
        if (dear := warning(config.method_row, spent)) is not None:
            log.warning("%s", dear)
        session.folder.begin(config, session.history, len(session.train))
    session.tell(
        Started(
            method=config.method_row.name,
            data=data.name,
            metric=data.task.metric,
            epochs=config.all_epochs,
            macs=config.macs,
            done=len(session.history),
            steps_per_epoch=len(session.train),
            run_dir=session.folder.path,
            resume_found_nothing=resumed_nothing,
            note=data.note,
        )
    )


def _learned(session: Session, data: Data, checkpoint: dict[str, Any] | None) -> Session:
    """The session at its end: ``session``, or that of its int8 finish."""
    for epoch in range(len(session.history), session.config.epochs):
        _run_epoch(session, epoch)
    if session.config.int8:
        plain = loader(session.fabric, session.config, data.train, shuffle=True)
        session = begin_finish(session, data, plain, checkpoint)
        for epoch in range(len(session.history), session.config.all_epochs):
            _run_epoch(session, epoch)
    return session


def _run_epoch(session: Session, epoch: int) -> None:
    """Train, measure, write the checkpoint."""
    began = time.perf_counter()
    session.advance(epoch)
    seed_everything(session.config.seed, epoch, session.fabric.global_rank)
    loss, train_accuracy = _train_epoch(session, epoch)
    record = Epoch(
        epoch=epoch + 1,
        step=session.step,
        phase=session.phase(epoch),
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
        session.folder.keep(session.saved(), session.rivals())
        session.folder.keep_anchor(session.network(), len(session.history), session.config)
        session.folder.save(session.state_dict(), record)
        if record.seconds > SLOW:
            session.folder.draw(session.history, session.method.task.metric)
    session.tell(record)


def _train_epoch(session: Session, epoch: int) -> tuple[float, float]:
    """Mean loss and accuracy of one pass over the training images, over all processes."""
    session.model.train()
    meter, learn = Meter(session, epoch), session.learning(epoch)
    for batch in session.train.epoch(epoch):
        lr = session.schedule.lr(session.step)
        for group in session.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        loss, right = learn(batch)
        session.optimizer.step()
        session.method.after_step()
        if session.average is not None:
            session.average.update(session.bare, session.method.slope)
        session.step += 1
        meter.add(lr, loss, right, len(batch.labels))
    session.optimizer.zero_grad()
    return meter.finish()


def _frozen(teacher: nn.Module | Sequence[nn.Module] | None, config: TrainConfig, data: Data) -> nn.Module | None:
    """A copy of ``teacher`` that answers and does not learn; of several a ``ModuleList``.

    Raises:
        UsageError: if the method needs one and there is none, or has no use for it; if it does not fit the data.
    """
    given = [teacher] if isinstance(teacher, nn.Module) else list(teacher or ())
    foreign = config.distils and config.teacher not in (None, SELF)
    if foreign != bool(given):
        raise UsageError(
            f"method '{config.method}' needs teacher=, a network" if foreign else "teacher= goes with a foreign teacher"
        )
    names = (
        config.teachers
        if len(config.teachers) == len(given)
        else [f"{config.teacher} ({i})" for i in range(len(given))]
    )
    for name, one in zip(names, given, strict=True):
        check_fits(one, data, f"the teacher {name}", config.sizes)
        check_coding(one, data, f"the teacher {name}", anchors=True)
    frozen = [copied(one, training=False).requires_grad_(False) for one in given]
    return nn.ModuleList(frozen) if len(frozen) > 1 else next(iter(frozen), None)


def _input_side(model: nn.Module) -> int | None:
    """Side of the square input that ``model`` remembers, in pixels; None if it remembers none."""
    origin = origin_of(model)
    if origin is None or len(origin.inputs[0].shape) != 4:
        return None
    height, width = origin.inputs[0].shape[2:]
    return width if height == width else None


def _tell_nobody(event: Event) -> None:
    """The listener of a run that nobody listens to."""
