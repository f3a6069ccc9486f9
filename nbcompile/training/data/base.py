"""What every data set looks like to the loop."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from nbcompile.core.errors import UsageError
from nbcompile.training.tasks.base import Task
from nbcompile.training.tasks.classification import CLASSIFICATION

Labelled = tuple[Tensor, Tensor]
"""Images ``(N, C, H, W)`` and their labels ``(N,)``, or what else their task has."""

DATA_KINDS = "digits, cifar10:DIR, imagefolder:DIR, torchvision:NAME?root=DIR, voc:DIR or package.module:factory"


class Images(Protocol):
    """A set of labelled images that is read a batch at a time."""

    @property
    def labels(self) -> Tensor:
        """Labels ``(N,)`` of all images, int64, without augmentation; it may take a pass over them."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, indices: list[int]) -> Labelled | UsageError:
        """Images ``(N, C, H, W)`` and labels ``(N,)``; a UsageError *returned* if one cannot be read.

        Returned and not raised, because a worker process would bury its sentence in its own traceback.
        """


@dataclass(frozen=True)
class Data:
    """A data set, ready to train on.

    Attributes:
        name: as the user wrote it.
        train: augmented.
        val: as it is; accuracy is measured here.
        classes: names, in the order of the labels.
        shape: ``(C, H, W)`` of one image.
        preprocessing: how raw images become inputs; kept in the trained file. Of a detector also ``boxes``: what its
            maps mean, as `nbcompile.detection.decode.BoxCoding` has it.
        task: what is learnt.
    """

    name: str
    train: Images
    val: Images
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    preprocessing: dict[str, Any] = field(default_factory=dict)
    task: Task = CLASSIFICATION
