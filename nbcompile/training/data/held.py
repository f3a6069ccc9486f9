"""Images of Pillow as bytes of red, green and blue: read when they are asked for, or decoded once and held in memory.

What is held is one block, which worker processes share: a forked one sees its parent's; where workers are spawned,
torch moves it into shared memory. While images are decoded, up to twice as much is in use.
"""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nbcompile.core.errors import UsageError
from nbcompile.training.data.crops import SMALL
from nbcompile.training.data.pictures import GO_ON, Pictures, readable

if TYPE_CHECKING:
    from nbcompile.training.data.base import Indices

Shape = Callable[[Any], Any]
"""Image of Pillow to image of Pillow."""

LOOKED_AT = 64
"""Images, at even distances, from whose size that of the whole set is estimated."""


class Source(Protocol):
    """Images as bytes."""

    @property
    def labels(self) -> Tensor:
        """Labels ``(N,)``."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, indices: "Indices") -> tuple[Tensor | list[Tensor], Tensor]:
        """Images, uint8: ``(N, 3, H, W)``, or each ``(3, H, W)``; and labels ``(N,)``.

        Raises:
            UsageError: if one cannot be read.
        """

    def hold_on(self, device: torch.device) -> bool:
        """Hold them on ``device``; whether that can be."""


class InFiles:
    """Images that are read when they are asked for.

    Args:
        pictures: the images.
        indices: those that are used.
    """

    def __init__(self, pictures: Pictures, indices: list[int]) -> None:
        self.pictures, self.indices = pictures, indices

    @cached_property
    def labels(self) -> Tensor:
        """Labels ``(N,)``."""
        return torch.tensor([self.pictures.label(index) for index in self.indices])

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: "Indices") -> tuple[list[Tensor], Tensor]:
        """See `Source`."""
        pairs = self.pillow(indices)
        return [_bytes(image).contiguous() for image, _ in pairs], torch.tensor([label for _, label in pairs])

    def hold_on(self, device: torch.device) -> bool:
        """See `Source`: files stay."""
        return False

    def pillow(self, indices: "Indices") -> list[tuple[Any, int]]:
        """Images of Pillow, and their labels.

        Raises:
            UsageError: if one cannot be read.
        """
        try:
            return [self.pictures.read(self.indices[int(index)]) for index in indices]
        except UsageError as error:
            raise UsageError(f"{error}; {GO_ON}") from error


class Held:
    """Images in memory.

    Args:
        images: each ``(3, H, W)``, uint8; the list is empty afterwards.
        labels: of each.
    """

    def __init__(self, images: list[Tensor], labels: list[int]) -> None:
        self.labels = torch.tensor(labels)
        self.sides = [tuple(image.shape[1:]) for image in images]
        self.starts = [0, *np.cumsum([image.numel() for image in images]).tolist()]
        self.block = torch.empty(self.starts[-1], dtype=torch.uint8)
        for index in range(len(images) - 1, -1, -1):  # each is given back once it is copied
            self.image(index).copy_(images.pop())

    def __len__(self) -> int:
        return len(self.sides)

    def read(self, indices: "Indices") -> tuple[Tensor | list[Tensor], Tensor]:
        """See `Source`."""
        stacked = self.stacked
        found = [self.image(int(index)) for index in indices] if stacked is None else stacked[indices]
        return found, self.labels[indices]

    def hold_on(self, device: torch.device) -> bool:
        """Hold small images of one size on ``device``; others are not made there, and stay."""
        if not self._alike or max(self.sides[0]) > SMALL:
            return False
        self.block, self.labels = self.block.to(device), self.labels.to(device)
        return True

    @property
    def stacked(self) -> Tensor | None:
        """All images, ``(N, 3, H, W)``; None where they have several sizes."""
        return self.block.view(-1, 3, *self.sides[0]) if self._alike else None

    @cached_property
    def _alike(self) -> bool:
        return len(set(self.sides)) == 1

    def image(self, index: int) -> Tensor:
        """One of them, ``(3, H, W)``, uint8."""
        return self.block[self.starts[index] : self.starts[index + 1]].view(3, *self.sides[index])


def hold(pictures: Pictures, shape: Shape, what: str, *, skip_broken: bool) -> Held:
    """All images of ``pictures``, decoded once, in threads.

    Args:
        pictures: to read.
        shape: what is held of an image.
        what: the set, in messages.
        skip_broken: leave out images that cannot be read.

    Raises:
        UsageError: as of `readable`.
    """
    _, labels, images = readable(pictures, lambda image, _: _bytes(shape(image)), what, skip_broken=skip_broken)
    return Held(images, labels)


def needed(pictures: Pictures, shape: Shape) -> int:
    """About how many bytes `hold` would take: as many for each image as for some of them, on average."""
    count = len(pictures)
    found: list[int] = []
    for index in range(0, count, max(1, count // LOOKED_AT)):
        try:
            image = shape(pictures.read(index)[0])
        except UsageError:  # who reads all of them says so
            continue
        found.append(3 * image.width * image.height)
    return count * sum(found) // max(1, len(found))


def _bytes(image: Any) -> Tensor:
    """``(3, H, W)``, uint8, a view of rows of pixels."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
