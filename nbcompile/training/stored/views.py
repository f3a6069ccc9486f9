"""Views of images and what a teacher answered to them, as rows of numbers: one file a view of the whole set.

A row has the numbers that were drawn, the logarithms of the largest probabilities and the classes they are of, and the
logarithm of what is left, which counts evenly for all other classes. A file is an array of NumPy that is mapped into
memory: processes share it, and one that is cut short is seen when it is opened.

Source: Shen and Xing 2022, arXiv:2112.01528 (FKD), sec. 3.2, for crops that are stored with their answers, and for
smoothing what is left; logarithms, and what is left as a number of its own, are ours.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nbcompile.core.errors import UsageError
from nbcompile.core.files import atomic
from nbcompile.training.batch import ANSWERS
from nbcompile.training.data.base import ImagesOver, Indices, Views


class ShownView(ImagesOver):
    """One view of each image of a set.

    Args:
        images: the set.
        drawn: the view of each, ``(N, P)``.
    """

    def __init__(self, images: Views, drawn: Tensor) -> None:
        super().__init__(images)
        self.views, self.drawn = images, drawn

    def __getitem__(self, indices: Indices) -> Any:
        return self.views.view(indices, self.drawn[indices])


class AnsweredViews(ImagesOver):
    """A set, of which one stored view at a time is seen, with the answers to it.

    Args:
        images: the set.
        classes: K.
    """

    def __init__(self, images: Views, classes: int) -> None:
        super().__init__(images)
        self.views, self.classes = images, classes
        self.rows: Any = None
        self._there: Rows | None = None

    def show(self, rows: np.ndarray) -> None:
        """From now on the view of ``rows``, one for each image; where the images are on a device, they go there."""
        self.rows = rows
        self._there = None if self.device is None else Rows(*(x.to(self.device) for x in as_tensors(rows)))

    def __getitem__(self, indices: Indices) -> Any:
        """Images, labels and, by name, answers ``(N, K)``: see `nbcompile.training.batch.Batch`."""
        there = self._there
        some = as_tensors(self.rows[indices]) if there is None else Rows(*(x[indices] for x in there))
        found = self.views.view(indices, some.drawn)
        return found if isinstance(found, UsageError) else (*found, {ANSWERS: unpacked(some, self.classes)})


class Rows(NamedTuple):
    """Columns of rows, as tensors.

    Attributes:
        drawn: ``(N, P)``, int16.
        logs: ``(N, top + 1)``, float16.
        classes: ``(N, top)``, int32.
    """

    drawn: Tensor
    logs: Tensor
    classes: Tensor


def as_tensors(rows: np.ndarray) -> Rows:
    """The columns of ``rows`` ``(N,)``."""
    drawn, logs, classes = (rows[name] for name in ("drawn", "logs", "classes"))
    return Rows(*(torch.from_numpy(np.array(x)) for x in (drawn, logs, classes.astype(np.int32))))


def row_type(numbers: int, top: int) -> np.dtype[Any]:
    """Of a row, with ``numbers`` that are drawn, and ``top`` classes."""
    return np.dtype([("drawn", "<i2", (numbers,)), ("logs", "<f2", (top + 1,)), ("classes", "<u2", (top,))])


def packed(drawn: Tensor, logits: Tensor, top: int) -> np.ndarray:
    """Rows ``(N,)``.

    Args:
        drawn: ``(N, P)``, int16.
        logits: ``(N, K)``.
        top: classes that are kept, at most K.

    Raises:
        UsageError: if a logit is no number.
    """
    logs = torch.log_softmax(logits.float(), dim=1)
    if not bool(logs.isfinite().all()):
        raise UsageError("the teacher answers with numbers that are not finite: it cannot teach")
    best = logs.topk(top, dim=1)
    rest = logs.scatter(1, best.indices, -math.inf).logsumexp(1, keepdim=True)
    rows = np.empty(len(drawn), row_type(drawn.shape[1], top))
    rows["drawn"] = drawn.cpu().numpy()
    rows["logs"] = torch.cat([best.values, rest], 1).cpu().numpy()
    rows["classes"] = best.indices.cpu().numpy()
    return rows


def unpacked(rows: Rows, classes: int) -> Tensor:
    """Logarithms of probabilities ``(N, K)``, float32, of ``rows`` ``(N,)``."""
    logs = rows.logs.float()
    others = max(1, classes - rows.classes.shape[1])
    spread = (logs[:, -1:] - math.log(others)).repeat(1, classes)
    return spread.scatter_(1, rows.classes.long(), logs[:, :-1])


def write_rows(path: Path, rows: np.ndarray) -> None:
    """Write a whole file.

    Raises:
        UsageError: if it cannot be written.
    """
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.save(file, rows, allow_pickle=False)


def read_rows(path: Path, count: int, expected: np.dtype[Any]) -> np.ndarray:
    """The rows of a file, mapped into memory.

    Raises:
        UsageError: if it is damaged, or holds something else.
    """
    try:
        rows: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{path} is damaged, or was never whole: delete it, and the teacher answers anew") from error
    if rows.dtype != expected or rows.shape != (count,):
        raise UsageError(f"{path} holds no answers to {count} images of this set: delete it, or choose another folder")
    return rows


def check_rows(path: Path, rows: np.ndarray, classes: int) -> None:
    """Look at every number.

    Raises:
        UsageError: if one is no probability or no class.
    """
    if not bool((rows["logs"] <= 0.01).all() and (rows["classes"] < classes).all()):  # nan is not
        raise UsageError(
            f"{path} is damaged: it holds numbers that are no answers; delete it, and the teacher answers anew"
        )
