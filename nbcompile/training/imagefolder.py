"""A folder of images: ``DIR/train/CLASS/*.jpg`` and ``DIR/val/CLASS/*.jpg`` (or ``DIR/test``)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nbcompile.core.errors import UsageError, missing_extra
from nbcompile.training.data import Batch, Data

# Statistics of ImageNet: what pretrained networks expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CROP = 0.875  # side of the centre crop over the resized shorter side


class Folder:
    """One part of a folder of images, read from disk a batch at a time.

    Args:
        dataset: a ``torchvision.datasets.ImageFolder`` without a transform.
        transform: PIL image to tensor ``(3, H, W)``.
    """

    def __init__(self, dataset: Any, transform: Any) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, indices: list[int]) -> Batch | UsageError:
        try:
            images = torch.stack([self._read(index) for index in indices])
        except UsageError as error:
            return error
        return images, torch.tensor([self.dataset.targets[index] for index in indices])

    def _read(self, index: int) -> Tensor:
        path, _ = self.dataset.samples[index]
        try:
            image = self.dataset.loader(path)
        except (OSError, SyntaxError, ValueError) as error:  # what PIL raises, depending on the format
            raise UsageError(f"{path} cannot be read as an image: {error}") from error
        tensor: Tensor = self.transform(image)
        return tensor


def load_imagefolder(folder: str, size: int | None) -> Data:
    """A folder of images at ``size`` pixels: random crops and flips to train on, centre crops to measure on.

    Raises:
        UsageError: if torchvision is missing, no size is known, or the folder is not as described above.
    """
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise missing_extra("train", "training on a folder of images", "torchvision") from error
    if size is None:
        raise UsageError(f"imagefolder:{folder} needs input_size: the model remembers no square input")
    root = Path(folder)
    held_out = root / "val" if (root / "val").is_dir() else root / "test"
    train, val = _open(root / "train"), _open(held_out)
    if len(train.classes) < 2:
        raise UsageError(f"{root / 'train'} has one class, '{train.classes[0]}': training needs at least two")
    if train.classes != val.classes:
        odd = sorted(set(train.classes) ^ set(val.classes))
        raise UsageError(f"{root / 'train'} and {held_out} must have the same classes; only one has {', '.join(odd)}")
    to_input = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    augment = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), *to_input])
    centre = v2.Compose([v2.Resize(round(size / CROP)), v2.CenterCrop(size), *to_input])
    return Data(
        name=f"imagefolder:{folder}",
        train=Folder(train, augment),
        val=Folder(val, centre),
        classes=tuple(train.classes),
        shape=(3, size, size),
        preprocessing={"scale": 1 / 255, "mean": list(MEAN), "std": list(STD), "size": size, "crop": CROP},
    )


def _open(folder: Path) -> Any:
    from torchvision.datasets import ImageFolder

    if not folder.is_dir():
        raise UsageError(f"{folder} is missing: expected DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg")
    try:
        return ImageFolder(str(folder))
    except FileNotFoundError as error:  # no class, or a class without images
        raise UsageError(f"{folder} cannot be used: {str(error).splitlines()[0]}") from error
