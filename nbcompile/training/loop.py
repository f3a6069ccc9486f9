"""The one loop that all methods share."""

import copy
import math
import time
from pathlib import Path

import torch
from torch import nn

from nbcompile.checkpoint import check_output, save
from nbcompile.core.errors import NBCompileError, UsageError
from nbcompile.core.example import origin_of
from nbcompile.training.check import check_fits
from nbcompile.training.config import SELF, TrainConfig
from nbcompile.training.data import Data, load_data, seed_everything
from nbcompile.training.engine import start
from nbcompile.training.measure import accuracy, averaged
from nbcompile.training.records import Epoch, Event, Started, Stepped, TrainResult
from nbcompile.training.runs import RunFolder
from nbcompile.training.session import Listener, Session, set_up


def train(
    model: nn.Module,
    config: TrainConfig,
    output: str | Path,
    run_dir: str | Path | None = None,
    resume: bool = False,
    on_event: Listener | None = None,
    teacher: nn.Module | None = None,
) -> TrainResult:
    """Train a copy of ``model`` by the reference recipe and write the trained file.

    The global generators of python, numpy and torch are reseeded from ``config.seed`` at every epoch.

    Args:
        model: a network with one logit per class of the data set; for netbooster also a giant.
        config: the recipe.
        output: the trained file (``trained.pt``), written when the last epoch is done.
        run_dir: folder of checkpoints and metrics; None is ``trained-run`` beside ``trained.pt``.
        resume: go on from the run folder's checkpoint, if there is one. On the CPU the numbers are those of
            a run that was never stopped, to the bit.
        on_event: told what happens, on the first process only.
        teacher: for a method that distils, unless ``config.teacher`` is ``self``; one logit per class.

    Returns:
        The history, the accuracies, and the trained network.

    Raises:
        UsageError: if the network does not fit the data, or data, run folder or ``output`` are unusable.
        CheckpointError: if the checkpoint to resume from cannot be read.
        NBCompileError: if the loss is no longer a finite number.
    """
    output = Path(output)
    check_output(output)
    folder = RunFolder(Path(run_dir) if run_dir is not None else output.parent / f"{output.stem}-run")
    checkpoint = folder.open(config, resume=resume)
    fabric = start(config)
    data = load_data(config, _input_side(model))
    check_fits(model, data)
    tell = on_event if on_event is not None and fabric.is_global_zero else _tell_nobody
    if teacher is not None:
        check_fits(teacher, data)
    session = set_up(fabric, config, model, data, folder, checkpoint, tell, _frozen(teacher, config))
    fabric.barrier()  # every process has read the folder before the first one writes to it
    if fabric.is_global_zero:
        folder.begin(config, session.history)
    tell(
        Started(
            method=config.method,
            data=data.name,
            epochs=config.epochs,
            done=len(session.history),
            steps_per_epoch=len(session.train),
            run_dir=folder.path,
            resume_found_nothing=resume and checkpoint is None,
        )
    )
    for epoch in range(len(session.history), config.epochs):
        _run_epoch(session, epoch)
    return _finish(session, data, output)


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
        val_accuracy=accuracy(session.fabric, session.bare, session.val),
        slope=session.method.slope,
        lr=session.schedule.lr(session.step - 1),
        seconds=time.perf_counter() - began,
    )
    session.history.append(record)
    if session.fabric.is_global_zero:
        session.folder.save(session.state_dict(), record)
    session.tell(record)


def _train_epoch(session: Session, epoch: int) -> tuple[float, float]:
    """Mean loss and accuracy of one pass over the training images, over all processes."""
    session.model.train()
    losses, correct, seen = [], 0, 0
    for images, labels in session.train.epoch(epoch):
        lr = session.schedule.lr(session.step)
        for group in session.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        with session.fabric.autocast():
            loss, logits = session.method.loss(session.model, images, labels)
        (value,) = averaged(session.fabric, loss.item())
        if not math.isfinite(value):  # on every process at once: none is left waiting for the others
            raise NBCompileError(_diverged(session, value, lr))
        session.fabric.backward(loss)
        session.optimizer.step()
        session.optimizer.zero_grad()
        session.method.after_step()
        session.step += 1
        losses.append(value)
        correct += int((logits.argmax(1) == labels).sum())
        seen += len(labels)
        session.tell(
            Stepped(
                epoch=epoch + 1,
                step=session.step,
                loss=value,
                accuracy=correct / seen,
                slope=session.method.slope,
                lr=lr,
                phase=session.method.phase(epoch),
            )
        )
    # Every process has as many images in every batch, so that means of means are means.
    (train_accuracy,) = averaged(session.fabric, correct / seen)
    return sum(losses) / len(losses), train_accuracy


def _finish(session: Session, data: Data, output: Path) -> TrainResult:
    """Measure what will be deployed, write the trained file."""
    model = session.bare.eval()
    fused = session.method.fused(model)
    fused_accuracy = None if fused is None else accuracy(session.fabric, fused, session.val)
    model.cpu()
    if session.fabric.is_global_zero:
        save(model, output, torch.zeros(1, *data.shape))
    session.fabric.barrier()
    result = TrainResult(
        method=session.config.method,
        data=data.name,
        history=tuple(session.history),
        accuracy=session.history[-1].val_accuracy,
        fused_accuracy=fused_accuracy,
        seconds=sum(epoch.seconds for epoch in session.history),
        output=output,
        run_dir=session.folder.path,
        model=model,
    )
    session.tell(result)
    return result


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
    return None if teacher is None else copy.deepcopy(teacher).eval().requires_grad_(False)


def _diverged(session: Session, loss: float, lr: float) -> str:
    done = len(session.history)
    kept = f"{session.folder.checkpoint} still holds epoch {done}" if done else "there is no checkpoint yet"
    return (
        f"the loss is {loss} at optimiser step {session.step + 1} with learning rate {lr:.3g}: "
        f"lower lr, or lengthen warmup_epochs; {kept}"
    )


def _input_side(model: nn.Module) -> int | None:
    """Side of the square input that ``model`` remembers, in pixels; None if it remembers none."""
    origin = origin_of(model)
    if origin is None or len(origin.inputs[0].shape) != 4:
        return None
    height, width = origin.inputs[0].shape[2:]
    return width if height == width else None


def _tell_nobody(event: Event) -> None:
    """The listener of a run that nobody listens to."""
