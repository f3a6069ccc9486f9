"""So many of the training images, chosen once and for all: the same in every run, whatever its seed."""

import torch
from torch import Tensor

from nbcompile.core.errors import UsageError
from nbcompile.training.data.base import Data, Images, Indices, Labelled, Views, checksum_of


class Subset:
    """Some of the images of a set.

    Args:
        images: the set.
        indices: which of them, ``(n,)``.
    """

    def __init__(self, images: Images, indices: Tensor) -> None:
        self.images, self.indices = images, indices

    @property
    def labels(self) -> Tensor:
        """Labels ``(n,)``."""
        return self.images.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, indices: list[int]) -> Labelled | UsageError:
        return self.images[self.indices[indices].tolist()]


class SubsetViews(Views):
    """As `Subset`, where views of the images can be repeated.

    Args:
        images: the set.
        indices: which of them, ``(n,)``.
    """

    def __init__(self, images: Views, indices: Tensor) -> None:
        self.images, self.indices, self.augmentation = images, indices, images.augmentation

    @property
    def labels(self) -> Tensor:
        """Labels ``(n,)``."""
        return self.images.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def checksum(self) -> str:
        """Of the whole set, and of which images are taken."""
        return checksum_of(self.indices, more=self.images.checksum())

    def draw(self, count: int) -> Tensor:
        """As of the whole set."""
        return self.images.draw(count)

    def view(self, indices: Indices, drawn: Tensor) -> Labelled | UsageError:
        """As of the whole set."""
        chosen = self.indices[indices]
        return self.images.view(chosen.tolist() if self.device is None else chosen, drawn)

    def hold_on(self, device: torch.device) -> bool:
        """As of the whole set."""
        if not self.images.hold_on(device):
            return False
        self.device, self.indices = device, self.indices.to(device)
        return True


def chosen(data: Data, count: int) -> Subset | SubsetViews:
    """``count`` of the training images of ``data``.

    Raises:
        UsageError: if there are not so many.
    """
    if count > len(data.train):
        raise UsageError(f"train_images {count} is more than the {len(data.train)} training images of {data.name}")
    labels = data.train.labels
    return some_of(data.train, evenly(labels if labels.ndim == 1 else labels.new_zeros(len(labels)).long(), count))


def some_of(images: Images, indices: Tensor) -> Subset | SubsetViews:
    """Those of ``images`` at ``indices`` ``(n,)``; views of them can be repeated if those of all can."""
    return SubsetViews(images, indices) if isinstance(images, Views) else Subset(images, indices)


def evenly(labels: Tensor, count: int) -> Tensor:
    """Indices, rising, of ``count`` of the images: each class in proportion, at even distances within its class.

    What is left after rounding down goes to the classes that lost most by it, and the first of equals.

    Args:
        labels: ``(N,)``, not negative, ``N >= count``.
        count: > 0.
    """
    sizes = labels.bincount()
    shares = sizes * count // len(labels)
    lost = sizes * count % len(labels)
    shares[lost.argsort(descending=True, stable=True)[: count - int(shares.sum())]] += 1
    members = (torch.nonzero(labels == label).flatten() for label in range(len(sizes)))
    picked = [
        mine[torch.arange(share) * len(mine) // max(share, 1)]
        for mine, share in zip(members, shares.tolist(), strict=True)
    ]
    return torch.cat(picked).sort().values
