"""The handwritten digits that scikit-learn bundles: 1,797 real 8×8 grey images, no download.

Split once and for all into 1,437 for training and 360 for measuring, each class in proportion.

Source: Alpaydin and Kaynak 1998, UCI, "Optical Recognition of Handwritten Digits" (its test part).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nbcompile.core.errors import missing_extra
from nbcompile.training.data import Batch, Data

HELD_OUT = 360
SPLIT_SEED = 0
SIDE = 8
WHITE = 16.0  # pixels are counts of 4×4 cells: 0 to 16
SHIFT = 1  # pixels


class Digits:
    """One part of the digits, held in memory.

    Args:
        pixels: ``(N, 1, 8, 8)``, in [0, 1].
        labels: ``(N,)``.
        mean: of the training part's pixels.
        std: of the training part's pixels.
        size: side of the images given out, in pixels.
        augment: shift each image by -1, 0 or 1 pixels in both directions.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, *, mean: float, std: float, size: int, augment: bool) -> None:
        self.pixels, self.labels = pixels, labels
        self.mean, self.std, self.size, self.augment = mean, std, size, augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: list[int]) -> Batch:
        images = self.pixels[indices]
        if self.augment:
            images = shifted(images)
        if self.size != SIDE:
            images = F.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        return (images - self.mean) / self.std, self.labels[indices]


def shifted(images: Tensor) -> Tensor:
    """``images`` (N, C, H, W), each shifted by up to ``SHIFT`` pixels; zeros move in."""
    n, _, height, width = images.shape
    padded = F.pad(images, (SHIFT,) * 4)
    offset = torch.randint(0, 2 * SHIFT + 1, (2, n, 1))
    rows = (offset[0] + torch.arange(height))[:, None, :, None]
    columns = (offset[1] + torch.arange(width))[:, None, None, :]
    channels = torch.arange(images.shape[1])[None, :, None, None]
    return padded[torch.arange(n)[:, None, None, None], channels, rows, columns]


def load_digits(size: int | None = None) -> Data:
    """The digits, scaled to zero mean and unit variance of the training part.

    Args:
        size: side of the images, in pixels; None is their own, 8.

    Raises:
        UsageError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as bundled
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise missing_extra("train", "training on digits", "scikit-learn") from error
    raw = bundled()
    pixels = torch.from_numpy(raw.images).float().unsqueeze(1) / WHITE
    labels = torch.from_numpy(raw.target).long()
    train, val = train_test_split(range(len(labels)), test_size=HELD_OUT, random_state=SPLIT_SEED, stratify=raw.target)
    mean, std, size = pixels[train].mean().item(), pixels[train].std().item(), size or SIDE

    def part(indices: list[int], augment: bool) -> Digits:
        return Digits(pixels[indices], labels[indices], mean=mean, std=std, size=size, augment=augment)

    return Data(
        name="digits",
        train=part(train, augment=True),
        val=part(val, augment=False),
        classes=tuple(str(name) for name in raw.target_names),
        shape=(1, size, size),
        preprocessing={"scale": 1 / WHITE, "mean": [mean], "std": [std], "size": size},
    )
