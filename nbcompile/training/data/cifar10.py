"""CIFAR-10, and any other set of 32×32 colour images in files, decoded once into memory.

``DIR`` holds ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg`` (or ``val``), or torchvision's ``cifar-10-batches-py``; a
.zip of such a ``train`` and ``test`` is read as it is.

Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
"""

import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nbcompile.core.errors import UsageError
from nbcompile.image_files import SUFFIXES
from nbcompile.training.data.base import BRIGHTEST, Data, Preparation
from nbcompile.training.data.imagefolder import Folders, parts_of
from nbcompile.training.data.in_files import check_classes
from nbcompile.training.data.in_memory import tensor_data
from nbcompile.training.data.pictures import Files, readable
from nbcompile.training.data.torchvision import from_torchvision

SIDE = 32


def load_cifar10(
    address: str, size: int | None = None, skip_broken: bool = False, how: Preparation | None = None
) -> Data:
    """CIFAR-10, scaled to zero mean and unit variance of the training part, per channel.

    Args:
        address: ``DIR``, or a .zip.
        size: side of the images given out, in pixels; None is their own, 32.
        skip_broken: leave out images that cannot be read.
        how: gives augmentation.

    Raises:
        UsageError: if the folder is not as described above, an image is broken or of another size, or cannot be
            augmented so.
    """
    root, name, how = Path(address), f"cifar10:{address}", how or Preparation()
    if (root / "cifar-10-batches-py").is_dir():
        return from_torchvision(name, "CIFAR10", {"root": address}, size, None, skip_broken, how)
    train, val, classes = _zipped(root) if root.suffix == ".zip" else parts_of(root)
    training = _decoded(train, f"{name}, training part", skip_broken)
    check_classes(name, training[1], classes)
    measured = _decoded(val, f"{name}, validation part", skip_broken)
    about: Any = {"scale": 1 / BRIGHTEST, "size": size, "mirror": True, "augment": how.augment}
    return tensor_data(name, training, measured, classes, **about)


def _decoded(files: Files, what: str, skip_broken: bool) -> tuple[Tensor, Tensor]:
    """Pixels ``(N, 3, 32, 32)``, uint8, and labels ``(N,)``."""
    _, labels, images = readable(files, _pixels, what, skip_broken=skip_broken)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.tensor(labels)


def _pixels(image: Any, name: str) -> np.ndarray:
    if image.size != (SIDE, SIDE):
        width, height = image.size
        raise UsageError(
            f"{name} has {width}×{height} pixels, not {SIDE}×{SIDE}: imagefolder:DIR takes images of any size"
        )
    return np.asarray(image)


def _zipped(archive: Path) -> Folders:
    """The images in ``archive``.

    Raises:
        UsageError: if it cannot be read, or does not hold train/CLASS/*.jpg and test/CLASS/*.jpg.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            paths = [PurePosixPath(name) for name in opened.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{archive} cannot be read as a .zip: {error}") from error
    images = sorted(path for path in paths if len(path.parts) == 3 and path.suffix.lower() in SUFFIXES)
    classes = tuple(sorted({path.parts[1] for path in images}))
    label = {name: number for number, name in enumerate(classes)}

    def part(*names: str) -> Files:
        labelled = [(str(path), label[path.parts[1]]) for path in images if path.parts[0] in names]
        if {number for _, number in labelled} != set(label.values()) or not labelled:
            raise UsageError(
                f"{archive} must hold train/CLASS/*.jpg and test/CLASS/*.jpg, with the same classes; "
                f"{len(labelled)} images were found in {names[0]}, of {len({number for _, number in labelled})} classes"
            )
        return Files(labelled, archive)

    return Folders(part("train"), part("test", "val"), classes)
