"""Images of any size, read and transformed one at a time by torchvision's v2 transforms.

Random crops (Szegedy et al. 2015, arXiv:1409.4842, sec. 6) and mirror images to train on, centre crops to measure on.
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nbcompile.core.errors import UsageError
from nbcompile.training.data.base import Data, Labelled
from nbcompile.training.data.pictures import GO_ON, Pictures, readable

# Statistics of ImageNet: what pretrained networks expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CROP = 0.875  # side of the centre crop over the resized shorter side


class TransformedImages:
    """One part of a set, read a batch at a time.

    Args:
        pictures: the images.
        indices: those that are used.
        transform: image of Pillow to tensor ``(3, H, W)``.
    """

    def __init__(self, pictures: Pictures, indices: list[int], transform: Any) -> None:
        self.pictures, self.indices, self.transform = pictures, indices, transform

    @cached_property
    def labels(self) -> Tensor:
        """Labels ``(N,)``."""
        return torch.tensor([self.pictures.label(index) for index in self.indices])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, indices: list[int]) -> Labelled | UsageError:
        try:
            pairs = [self.pictures.read(self.indices[index]) for index in indices]
        except UsageError as error:
            return UsageError(f"{error}; {GO_ON}")
        return torch.stack([self.transform(image) for image, _ in pairs]), torch.tensor([label for _, label in pairs])


def transformed_data(
    name: str,
    train: Pictures,
    val: Pictures,
    classes: tuple[str, ...],
    *,
    size: int | None,
    mirror: bool,
    skip_broken: bool,
) -> Data:
    """A data set of images at ``size`` pixels, normalised as ImageNet is.

    Args:
        name: as the user wrote it.
        train: the images to train on.
        val: the images to measure on.
        classes: names, in the order of the labels.
        size: side of the images given out, in pixels; None is refused.
        mirror: whether a mirror image means the same.
        skip_broken: read all images now, and leave out those that cannot be read: the order of the others, which
            must be the same on all processes and after resuming, is then a function of the files alone.

    Raises:
        UsageError: if no size is known, or a class loses all its images.
    """
    from torchvision.transforms import v2

    if size is None:
        raise UsageError(f"{name} needs input_size: the model remembers no square input")
    to_input = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    flip = [v2.RandomHorizontalFlip()] if mirror else []
    augment = v2.Compose([v2.RandomResizedCrop(size), *flip, *to_input])
    centre = v2.Compose([v2.Resize(round(size / CROP)), v2.CenterCrop(size), *to_input])

    def part(pictures: Pictures, transform: Any, what: str) -> TransformedImages:
        kept = list(range(len(pictures)))
        if skip_broken:
            kept, _ = readable(pictures, _nothing, f"{name}, {what}", skip_broken=True)
        return TransformedImages(pictures, kept, transform)

    training = part(train, augment, "training part")
    if skip_broken:
        check_classes(name, training.labels, classes)
    return Data(
        name=name,
        train=training,
        val=part(val, centre, "validation part"),
        classes=classes,
        shape=(3, size, size),
        preprocessing={"scale": 1 / 255, "mean": list(MEAN), "std": list(STD), "size": size, "crop": CROP},
    )


def check_classes(name: str, labels: Tensor, classes: tuple[str, ...]) -> None:
    """Check that every class still has images.

    Raises:
        UsageError: if one has none.
    """
    counts = labels.bincount(minlength=len(classes)).tolist()
    if lost := [label for label, count in zip(classes, counts, strict=True) if count == 0]:
        raise UsageError(f"{name}: no image of {', '.join(lost)} can be read")


def _nothing(image: Any, name: str) -> None:
    """What is kept of an image that can be read."""
