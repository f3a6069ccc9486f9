"""Images of one size, held in memory as bytes and augmented a batch at a time: no Python per image.

A batch is shifted (He et al. 2016, arXiv:1512.03385, sec. 4.2: 32 × 32 crops of images padded by 4; zeros move in, as
in torchvision's ``RandomCrop(32, padding=4)``, so that accuracies compare with published ones), and mirrored where a
mirror image means the same.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nbcompile.core.errors import UsageError
from nbcompile.training.data.augmentations import AutoAugmented, drawn_seeds
from nbcompile.training.data.base import BRIGHTEST, Data, Indices, Labelled, Views, checksum_of

SHIFT = 1 / 8
"""The most that an image is shifted, over its side."""


class TensorImages(Views):
    """One part of a set, held in memory; its views (see `Views`) are shifts and mirror images.

    Args:
        pixels: ``(N, C, H, W)``, uint8.
        labels: ``(N,)``, int64.
        preprocessing: ``scale`` of pixels; ``mean`` and ``std`` of scaled pixels, per channel; ``size``, the side of
            the images given out, in pixels.
        augment: shift each image.
        mirror: mirror about every other one.
        change: AutoAugment; None is none.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        preprocessing: dict[str, Any],
        *,
        augment: bool,
        mirror: bool = False,
        change: AutoAugmented | None = None,
    ) -> None:
        self.pixels, self._labels, self.augment, self.mirror, self.change = pixels, labels, augment, mirror, change
        self.scale, self.size = preprocessing["scale"], preprocessing["size"]
        self.mean, self.std = (torch.tensor(preprocessing[key]).view(-1, 1, 1) for key in ("mean", "std"))
        self.most = round(SHIFT * pixels.shape[-1])
        shifts = f"shifted by up to {self.most} px" if augment else ""
        said = [shifts, "mirrored" if mirror else "", change.said if change else ""]
        self.augmentation = ", ".join(filter(None, said)) or "none"

    @property
    def labels(self) -> Tensor:
        """Labels ``(N,)``."""
        return self._labels

    def __len__(self) -> int:
        return len(self._labels)

    def checksum(self) -> str:
        """Of all pixels and labels."""
        return checksum_of(self.pixels, self.labels)

    def draw(self, count: int) -> Tensor:
        """Rows and columns to shift by, 1 for a mirror image, a seed; each where there is such a thing."""
        there = self.device
        columns = [torch.randint(0, 2 * self.most + 1, (2, count), device=there).T] if self.augment else []
        if self.mirror:
            columns.append(torch.rand(count, 1, device=there) < 0.5)
        if self.change:
            columns.append(drawn_seeds(count))
        return torch.cat([torch.empty(count, 0, dtype=torch.int16, device=there), *(x.short() for x in columns)], 1)

    def view(self, indices: Indices, drawn: Tensor) -> Labelled:
        """Images ``(N, C, H, W)`` in the views ``drawn`` ``(N, P)``, and labels ``(N,)``."""
        images = self.pixels[indices]
        if self.augment:
            images = shifted(images, self.most, *drawn[:, :2].long().unbind(1))
        if self.mirror:
            images = mirrored(images, drawn[:, 2 * self.augment] == 1)
        if self.change:
            images = self.change(images, drawn[:, -1])
        inputs = images.float().mul_(self.scale)
        if inputs.shape[2:] != (self.size, self.size):
            inputs = F.interpolate(inputs, size=(self.size, self.size), mode="bilinear", antialias=True)
        return inputs.sub_(self.mean).div_(self.std), self._labels[indices]

    def hold_on(self, device: torch.device) -> bool:
        """See `Views.hold_on`; AutoAugment takes one image at a time, and stays where it is."""
        if self.change:
            return False
        self.device = device
        self.pixels, self._labels, self.mean, self.std = (
            x.to(device) for x in (self.pixels, self._labels, self.mean, self.std)
        )
        return True

    def resize(self, side: int) -> None:
        """Images are ``side`` pixels wide and high from now on."""
        self.size = side


def shifted(images: Tensor, most: int, rows: Tensor, columns: Tensor) -> Tensor:
    """``images`` (N, C, H, W), each from ``(row, column)`` of itself in a frame of zeros, ``most`` pixels wide.

    Args:
        images: of any dtype.
        most: pixels.
        rows: ``(N,)``, 0 to ``2 * most``; ``most`` is no shift.
        columns: likewise.
    """
    n, _, height, width = images.shape
    windows = F.pad(images, (most,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(n, device=images.device), :, rows, columns]


def mirrored(images: Tensor, which: Tensor) -> Tensor:
    """``images`` (N, C, H, W), left to right where ``which`` ``(N,)`` says so."""
    return torch.where(which.view(-1, 1, 1, 1), images.flip(3), images)


def statistics(pixels: Tensor, scale: float) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of ``pixels`` (N, C, H, W) times ``scale``, in float64."""
    total = torch.zeros(2, pixels.shape[1], dtype=torch.float64)
    for some in torch.split(pixels, 1024):  # float64 takes eight times the memory
        values = some.double() * scale
        total += torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])
    count = pixels.numel() / pixels.shape[1]
    mean, square = total / count
    return mean.tolist(), (square - mean**2).clamp(min=torch.finfo(torch.float32).eps).sqrt().tolist()


def tensor_data(
    name: str,
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    classes: tuple[str, ...],
    *,
    scale: float,
    size: int | None,
    mirror: bool,
    augment: str = "light",
) -> Data:
    """A data set of images in memory, scaled to zero mean and unit variance of the training part.

    Args:
        name: as the user wrote it.
        train: pixels ``(N, C, H, W)``, uint8, and labels ``(N,)``.
        val: likewise.
        classes: names, in the order of the labels.
        scale: 1 over the pixel value of white.
        size: side of the images given out, in pixels; None is their own.
        mirror: whether a mirror image means the same.
        augment: as in `nbcompile.training.options.data`.

    Raises:
        UsageError: if such images cannot be augmented so.
    """
    colour = train[0].shape[1] == 3 and scale == 1 / BRIGHTEST
    if augment == "crops" or (augment == "autoaugment" and not colour):
        needs = "images of any size, in files" if augment == "crops" else "images of red, green and blue"
        raise UsageError(f"augment '{augment}' needs {needs}; those of {name} are shifted by 'light'")
    mean, std = statistics(train[0], scale)
    channels, side = train[0].shape[1], size or train[0].shape[-1]
    preprocessing = {"scale": scale, "mean": mean, "std": std, "size": side}
    some = augment != "none"
    change = AutoAugmented("cifar10") if augment == "autoaugment" else None
    images = TensorImages(*train, preprocessing, augment=some, mirror=mirror and some, change=change)
    return Data(
        name=name,
        train=images,
        val=TensorImages(*val, preprocessing, augment=False),
        classes=classes,
        shape=(channels, side, side),
        preprocessing=preprocessing,
        resize=images.resize,
    )
