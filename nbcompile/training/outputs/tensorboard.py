"""Metrics for TensorBoard: one event file per run, with one point per epoch at its optimiser step.

Written record by record: ``torch.utils.tensorboard`` imports all of TensorFlow where that is installed, for seconds.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from nbcompile.training.outputs.records import Epoch

_NAME = "events.out.tfevents."


def begin(folder: Path, history: Sequence[Epoch]) -> None:
    """Start the event file of the run in ``folder`` with the epochs that it has behind it; it replaces older ones."""
    for old in folder.glob(f"{_NAME}*"):
        old.unlink()
    now = time.time()
    left = sum(epoch.seconds for epoch in history)
    records = [_encoded(now - left, version="brain.Event:2")]
    for epoch in history:
        left -= epoch.seconds
        records.append(_encoded(now - left, epoch))
    _append(folder / f"{_NAME}{int(now)}", records)


def add_epoch(folder: Path, epoch: Epoch) -> None:
    """One epoch more."""
    (path,) = folder.glob(f"{_NAME}*")
    _append(path, [_encoded(time.time(), epoch)])


def _append(path: Path, records: Sequence[bytes]) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    with path.open("ab") as file:
        writer = RecordWriter(file)
        for record in records:
            writer.write(record)


def _encoded(at: float, epoch: Epoch | None = None, version: str | None = None) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    if epoch is None:
        event = Event(wall_time=at, file_version=version)
    else:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(epoch)]
        event = Event(wall_time=at, step=epoch.step, summary=Summary(value=values))
    encoded: bytes = event.SerializeToString()
    return encoded


def _scalars(epoch: Epoch) -> Iterator[tuple[str, float]]:
    yield "accuracy/train", epoch.train_accuracy
    yield "accuracy/val", epoch.val_accuracy
    yield "loss", epoch.loss
    yield "lr", epoch.lr
    yield from epoch.measured.items()
    if epoch.slope is not None:
        yield "slope", epoch.slope
