"""What every data set looks like to the loop."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from nbcompile.core.errors import UsageError
from nbcompile.core.random_state import forked_rng
from nbcompile.training.loader import held_on
from nbcompile.training.options.machine import MEMORY
from nbcompile.training.tasks.base import Task
from nbcompile.training.tasks.classification import CLASSIFICATION

BRIGHTEST = 255
"""Value of a white pixel, where colours are bytes."""

Labelled = tuple[Tensor, Tensor]
"""Images ``(N, C, H, W)`` and their labels ``(N,)``, or what else their task has."""

Indices = list[int] | Tensor
"""Of images; where those are held on a device, also ``(N,)``, int64, on it."""

DATA_KINDS = "digits, cifar10:DIR, imagefolder:DIR, torchvision:NAME?root=DIR, voc:DIR or package.module:factory"


class Images(Protocol):
    """A set of labelled images that is read a batch at a time."""

    @property
    def labels(self) -> Tensor:
        """Labels ``(N,)`` of all images, int64, without augmentation; it may take a pass over them."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, indices: Any) -> Labelled | UsageError:
        """Images ``(N, C, H, W)`` and labels ``(N,)``; a UsageError *returned* if one cannot be read.

        Returned and not raised, because a worker process would bury its sentence in its own traceback.
        """


class ImagesOver:
    """What a set has in common with the one that it shows in another way.

    Args:
        images: the other.
    """

    def __init__(self, images: Images) -> None:
        self.images = images

    @property
    def device(self) -> torch.device | None:
        """As the other's: see `held_on`."""
        return held_on(self.images)

    @property
    def labels(self) -> Tensor:
        """As the other's."""
        return self.images.labels

    def __len__(self) -> int:
        return len(self.images)


SAMPLE = 1024
"""Images that a checksum looks at, where all would take long."""


def checksum_of(*tensors: Tensor, more: str = "") -> str:
    """Of shapes and values, and of ``more``."""
    found = hashlib.sha256(more.encode())
    for x in tensors:
        found.update(f"{x.dtype} {tuple(x.shape)}".encode())
        found.update(x.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


class Views(ABC):
    """Images whose random views can be drawn once, written down, and seen again: ``isinstance(images, Views)`` asks.

    ``images[indices]`` is ``images.view(indices, images.draw(len(indices)))``. What is drawn depends neither on the
    image nor on the side of the images given out: a row of numbers is a view of any image of the set, at any size, and
    is seen to the bit each time, as long as ``augmentation`` and the images are the same. Rows are small whole numbers
    (int16), so that nothing is lost in a file; there are no columns where nothing is random.

    Attributes:
        augmentation: how a view follows from what is drawn, in words, for people and checksums.
        device: see `held_on`.
    """

    augmentation: str
    device: torch.device | None = None

    @property
    @abstractmethod
    def labels(self) -> Tensor:
        """As of `Images`."""

    @abstractmethod
    def __len__(self) -> int: ...

    def __getitem__(self, indices: Indices) -> Labelled | UsageError:
        return self.view(indices, self.draw(len(indices)))

    def hold_on(self, device: torch.device) -> bool:
        """Hold the images on ``device``, where views are drawn and made from now on; whether that can be."""
        return False

    def checksum(self) -> str:
        """Tells these images and labels from others: here of all labels, and of one view of some of the images."""
        some = range(0, len(self), max(1, len(self) // SAMPLE))
        with forked_rng():
            torch.manual_seed(0)
            drawn = self.draw(len(some))
        found = self.view(list(some), drawn)
        if isinstance(found, UsageError):
            raise found
        return checksum_of(self.labels, found[0])

    @abstractmethod
    def draw(self, count: int) -> Tensor:
        """``count`` random views ``(count, P)``, int16, from torch's global generator; P is fixed for a set."""

    @abstractmethod
    def view(self, indices: Indices, drawn: Tensor) -> Labelled | UsageError:
        """As ``images[indices]``, each image in the view that its row of ``drawn`` ``(N, P)`` says."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How images become what a run trains on, where its options say so.

    Attributes:
        augment: as in `nbcompile.training.options.data`.
        largest: side of the largest images that are trained on, in pixels; None: none are larger than what is measured.
        memory: megabytes up to which images in files are decoded once and held.
    """

    augment: str = "light"
    largest: int | None = None
    memory: int = MEMORY


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
        resize: lets ``train`` give out images of another side, in pixels, from the next batch on; None where it cannot.
        note: what is said of it when a run begins.
        task: what is learnt.
    """

    name: str
    train: Images
    val: Images
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    preprocessing: dict[str, Any] = field(default_factory=dict)
    resize: Callable[[int], None] | None = None
    note: str = ""
    task: Task = CLASSIFICATION
