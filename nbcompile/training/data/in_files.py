"""A data set of images of any size: held in memory, if it fits, or read from files as it is needed."""

from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from nbcompile.core.errors import UsageError
from nbcompile.training.data.augmentations import AutoAugmented
from nbcompile.training.data.base import BRIGHTEST, Data, Preparation
from nbcompile.training.data.cropped_images import CROP, MEAN, STD, CentredImages, CroppedImages, centred, shrunk
from nbcompile.training.data.held import Held, InFiles, Shape, hold, needed
from nbcompile.training.data.in_memory import TensorImages
from nbcompile.training.data.pictures import Pictures, readable

LIGHT = 0.5
"""Least share of an image in a crop. Small networks under-fit, and want less distortion (Howard et al. 2017,
arXiv:1704.04861, sec. 3.2; Zhang et al. 2018, arXiv:1707.01083, sec. 4). With this share, which is our choice, crops
have 3/4 of a square image on average, as the centre crop that is measured has (0.875²): things appear as large in
training as in use. With 0.08 they appear larger (Touvron et al. 2019, arXiv:1906.06423, sec. 3)."""

STANDARD = 0.08
"""The same, for networks that are large enough: Szegedy et al. 2015, arXiv:1409.4842, sec. 6."""

MEGABYTE = 1_000_000


class _Part(NamedTuple):
    """One part of a set.

    Attributes:
        pictures: its images.
        shape: what is held of an image.
        what: the part, in messages.
    """

    pictures: Pictures
    shape: Shape
    what: str


def transformed_data(
    name: str,
    train: Pictures,
    val: Pictures,
    classes: tuple[str, ...],
    *,
    size: int | None,
    mirror: bool,
    skip_broken: bool,
    how: Preparation,
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
        how: gives augmentation, and when images are held.

    Raises:
        UsageError: if no size is known, a class loses all its images, or one that is to be held cannot be read.
    """
    if size is None:
        raise UsageError(f"{name} needs input_size: the model remembers no square input")
    largest = max(size, how.largest or size)
    least = None if how.augment == "none" else STANDARD if how.augment == "crops" else LIGHT
    shape = centred(largest) if least is None else partial(shrunk, size=largest, least=least)
    parts = (_Part(train, shape, f"{name}, training part"), _Part(val, centred(size), f"{name}, validation part"))
    fits = sum(needed(part.pictures, part.shape) for part in parts) <= how.memory * MEGABYTE
    training, measured = (_held(part, skip_broken) if fits else _in_files(part, skip_broken) for part in parts)
    if skip_broken:
        check_classes(name, training.labels, classes)
    preprocessing = {"scale": 1 / BRIGHTEST, "mean": list(MEAN), "std": list(STD), "size": size, "crop": CROP}
    if least is None:
        images: CroppedImages | CentredImages | TensorImages = _centred_images(training, preprocessing)
    else:
        change = AutoAugmented("imagenet") if how.augment == "autoaugment" else None
        images = CroppedImages(training, size, least, mirror=mirror, change=change)
    return Data(
        name=name,
        train=images,
        val=_centred_images(measured, preprocessing),
        classes=classes,
        shape=(3, size, size),
        preprocessing=preprocessing,
        resize=images.resize,
        note=_note(training, measured),
    )


def _held(part: _Part, skip_broken: bool) -> Held:
    return hold(part.pictures, part.shape, part.what, skip_broken=skip_broken)


def _in_files(part: _Part, skip_broken: bool) -> InFiles:
    kept = list(range(len(part.pictures)))
    if skip_broken:
        kept, _, _ = readable(part.pictures, _nothing, part.what, skip_broken=True)
    return InFiles(part.pictures, kept)


def _centred_images(source: Held | InFiles, preprocessing: dict[str, Any]) -> CentredImages | TensorImages:
    """Centre crops of images, held as such or read from files."""
    if isinstance(source, InFiles):
        return CentredImages(source, preprocessing["size"])
    assert source.stacked is not None
    return TensorImages(source.stacked, source.labels, preprocessing, augment=False)


def _note(*parts: Held | InFiles) -> str:
    blocks = [part.block.numel() for part in parts if isinstance(part, Held)]
    count = sum(map(len, parts))
    return f"{count:,} images, {sum(blocks) / MEGABYTE:,.0f} MB, held in memory" if blocks else ""


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
