"""A folder of images: ``DIR/train/CLASS/*.jpg`` and ``DIR/val/CLASS/*.jpg`` (or ``DIR/test``)."""

from pathlib import Path
from typing import Any, NamedTuple

from nbcompile.core.errors import UsageError, missing_extra
from nbcompile.training.data.base import Data, Preparation
from nbcompile.training.data.in_files import transformed_data
from nbcompile.training.data.pictures import Files


class Folders(NamedTuple):
    """The two parts of a set of images in files, and the classes of both, sorted."""

    train: Files
    val: Files
    classes: tuple[str, ...]


def load_imagefolder(folder: str, size: int | None, skip_broken: bool = False, how: Preparation | None = None) -> Data:
    """A folder of images at ``size`` pixels: see `transformed_data`.

    Raises:
        UsageError: if torchvision is missing, no size is known, the folder is not as described above, or an image
            cannot be read.
    """
    train, val, classes = parts_of(Path(folder))
    name = f"imagefolder:{folder}"
    about: Any = {"size": size, "mirror": True, "skip_broken": skip_broken, "how": how or Preparation()}
    return transformed_data(name, train, val, classes, **about)


def parts_of(root: Path) -> Folders:
    """The images under ``root``.

    Raises:
        UsageError: if torchvision is missing, or the folder is not as described above.
    """
    held_out = root / "val" if (root / "val").is_dir() else root / "test"
    (train, classes), (val, others) = _listed(root / "train"), _listed(held_out)
    if len(classes) < 2:
        raise UsageError(f"{root / 'train'} has one class, '{classes[0]}': training needs at least two")
    if classes != others:
        odd = sorted(set(classes) ^ set(others))
        raise UsageError(f"{root / 'train'} and {held_out} must have the same classes; only one has {', '.join(odd)}")
    return Folders(Files(train), Files(val), tuple(classes))


def _listed(folder: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """Path and label of every image in ``folder``, and the classes."""
    try:
        from torchvision.datasets import ImageFolder
    except ImportError as error:
        raise missing_extra("train", "training on a folder of images", "torchvision") from error
    if not folder.is_dir():
        raise UsageError(f"{folder} is missing: expected DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg (or DIR/test)")
    try:
        dataset = ImageFolder(str(folder))
    except OSError as error:  # no class, a class without images, or it may not be read
        raise UsageError(f"{folder} cannot be used: {str(error).splitlines()[0]}") from error
    return dataset.samples, dataset.classes
