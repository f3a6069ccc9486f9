"""Labelled images in files: broken ones named, or passed over on request."""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar
from zipfile import ZipFile

from nbcompile.core.errors import UsageError
from nbcompile.image_files import naming, opened
from nbcompile.training.engine import is_main_process

log = logging.getLogger("nbcompile")

T = TypeVar("T")

GO_ON = "--skip-broken (skip_broken=True) passes over such images"
NAMED = 3  # broken images that the warning names
CHUNK = 256  # images that a thread reads at a time


class Pictures(Protocol):
    """Labelled images of Pillow, read one at a time."""

    def __len__(self) -> int:
        """Number of images."""

    def name(self, index: int) -> str:
        """What messages call one image."""

    def label(self, index: int) -> int:
        """Of one image."""

    def read(self, index: int) -> tuple[Any, int]:
        """One image, decoded, in RGB, and its label.

        Raises:
            UsageError: if it cannot be read, with its name.
        """


class Files:
    """Images in files, or in an archive.

    Args:
        samples: path and label of each.
        archive: the .zip that the paths are in; None if they are on disk.
    """

    def __init__(self, samples: Sequence[tuple[str, int]], archive: Path | None = None) -> None:
        self.samples = samples
        self.archive = None if archive is None else ZipFile(archive)

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        """What messages call one image."""
        inside = "" if self.archive is None else f"{self.archive.filename}/"
        return inside + self.samples[index][0]

    def label(self, index: int) -> int:
        """Of one image."""
        return self.samples[index][1]

    def read(self, index: int) -> tuple[Any, int]:
        """One image, decoded, in RGB, and its label.

        Raises:
            UsageError: if it cannot be read, with its name.
        """
        path, label = self.samples[index]
        if self.archive is None:
            return opened(path, path), label
        with naming(self.name(index)):
            source = BytesIO(self.archive.read(path))
        return opened(source, self.name(index)), label


def readable(
    pictures: Pictures, take: Callable[[Any, str], T], what: str, *, skip_broken: bool
) -> tuple[list[int], list[int], list[T]]:
    """``take`` of every image, each read once, in threads.

    Args:
        pictures: to read.
        take: what is wanted of an image and its name; what it raises is raised, ``skip_broken`` or not.
        what: the set, in messages.
        skip_broken: leave out images that cannot be read, with one warning.

    Returns:
        Indices of the images that can be read, rising, their labels, and what was taken of each.

    Raises:
        UsageError: for the first image that cannot be read, unless ``skip_broken``; and if none can.
    """

    def taken(start: int) -> list[tuple[int, T] | _Broken]:
        return [_take(pictures, index, take) for index in range(start, min(start + CHUNK, len(pictures)))]

    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        found: list[tuple[int, T] | _Broken] = []
        for chunk in pool.map(taken, range(0, len(pictures), CHUNK)):
            found += chunk
            if not skip_broken and (broken := next((x for x in chunk if isinstance(x, _Broken)), None)):
                pool.shutdown(cancel_futures=True)
                raise UsageError(f"{broken.why}; {GO_ON}")
    _report(what, [x.why for x in found if isinstance(x, _Broken)], len(pictures))
    kept = [(index, *x) for index, x in enumerate(found) if not isinstance(x, _Broken)]
    return [index for index, _, _ in kept], [label for _, label, _ in kept], [x for _, _, x in kept]


class _Broken(NamedTuple):
    why: str


def _take(pictures: Pictures, index: int, take: Callable[[Any, str], T]) -> tuple[int, T] | _Broken:
    try:
        image, label = pictures.read(index)
    except UsageError as error:
        return _Broken(str(error))
    return label, take(image, pictures.name(index))


def _report(what: str, broken: list[str], total: int) -> None:
    """Say once which images are left out.

    Raises:
        UsageError: if none is left.
    """
    if not broken:
        return
    if len(broken) == total:
        raise UsageError(f"{what}: none of its {total} images can be read; the first: {broken[0]}")
    if is_main_process():
        more = f"; and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        first = "; ".join(broken[:NAMED])
        log.warning("%s: %d of %d images are left out: %s%s", what, len(broken), total, first, more)
