"""The record of a folder of stored labels: what they were made of, and which runs use them.

``labels.json`` is written before the first view. Whoever changes it holds the folder's lock; whoever adds a view, that
view's, so that several runs answer several views at the same time.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import nn

from nbcompile.core.errors import UsageError
from nbcompile.core.files import atomic
from nbcompile.training.data.base import checksum_of

STORED_FORMAT = 1

log = logging.getLogger("nbcompile")

_NAME = "labels.json"
_SOON = 5.0

_SAID = {
    "classes": "other classes",
    "shape": "another input size",
    "augmentation": "other augmentation",
    "images": "other images",
    "teacher": "another teacher",
    "top": "another number of classes to an image",
}
"""What differs, where a field does; in the order in which it is looked for."""


@dataclass(frozen=True, kw_only=True)
class StoredRecord:
    """What stored labels were made of.

    Attributes:
        data: name of the data set; another one with the same images is as good.
        images: checksum.
        count: images.
        classes: names.
        shape: ``(C, H, W)``.
        augmentation: in words.
        teacher: checksum of the weights.
        named: as the user named it.
        macs: multiply-accumulates of an answer.
        training: what the teacher's own training cost, in MACs; None where nobody knows.
        top: classes that are kept of an answer.
        seed: of the views.
        runs: by their folders, how many views each had answered.
    """

    data: str
    images: str
    count: int
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    augmentation: str
    teacher: str
    named: str
    macs: int
    training: int | None
    top: int
    seed: int
    runs: dict[str, int] = field(default_factory=dict)

    def check_same(self, told: dict[str, Any], folder: Path) -> None:
        """Compare with what a run is told.

        Raises:
            UsageError: with the first that differs.
        """
        for name, what in _SAID.items():
            was = getattr(self, name)
            if name in told and told[name] != was:
                known = "" if name in ("images", "teacher") else _contrast(was, told[name])
                raise UsageError(f"{folder} holds labels that were stored with {what}{known}; choose another folder")

    def write(self, folder: Path) -> None:
        """Write ``labels.json``."""
        with atomic(folder / _NAME) as temporary:
            temporary.write_text(json.dumps({"format": STORED_FORMAT, **asdict(self)}, indent=2) + "\n")


def _contrast(was: Any, now: Any) -> str:
    """Two values as messages show them; of names that are as many, those that differ."""
    if isinstance(was, tuple) and isinstance(was[0], str):
        pairs = [pair for pair in zip(was, now, strict=False) if len(set(pair)) > 1]
        was, now = pairs[0] if len(was) == len(now) else (len(was), len(now))
    shown = (
        "×".join(map(str, x)) if isinstance(x, tuple) else f"'{x}'" if isinstance(x, str) else x for x in (was, now)
    )
    return ": {}, not {}".format(*shown)


def read_record(folder: Path) -> StoredRecord | None:
    """The record in ``folder``; None where the folder is missing or empty.

    Raises:
        UsageError: if the folder is something else, or its record is damaged.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"stored_labels {folder} is a file: name a folder")
    file = folder / _NAME
    if not file.exists():
        if other := next((x for x in sorted(folder.glob("*")) if not x.name.startswith(".")), None):
            raise UsageError(f"{folder} holds no stored labels, but {other.name}: choose a folder of their own")
        return None
    try:
        told = json.loads(file.read_text())
        version = told.pop("format")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{file} is damaged: delete the folder, and the teacher answers anew") from error
    if version != STORED_FORMAT:
        raise UsageError(
            f"{file} has format {version}, this version of nbcompile reads {STORED_FORMAT}: choose another folder"
        )
    if told.keys() != {one.name for one in fields(StoredRecord)}:
        raise UsageError(f"{file} is no record of stored labels: choose another folder")
    return StoredRecord(**told | {name: tuple(told[name]) for name in ("classes", "shape")})


@contextmanager
def alone_with(folder: Path, part: str = "") -> Iterator[None]:
    """Nobody else changes the record of ``folder`` meanwhile, or the ``part`` that is named; made where it is missing.

    Raises:
        UsageError: if it cannot be made, or not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".lock{part}")
        try:
            lock.acquire(timeout=_SOON)  # of a process that ends, the system gives it back
        except Timeout:
            log.warning("%s: waiting for another run, whose teacher answers", folder / part)
            lock.acquire()
    except OSError as error:
        raise UsageError(f"stored_labels {folder} cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def checksum_of_weights(model: nn.Module) -> str:
    """Of the names, shapes and values of all parameters and buffers."""
    weights = sorted(model.state_dict().items())
    return checksum_of(*(value.detach().cpu() for _, value in weights), more=" ".join(name for name, _ in weights))
