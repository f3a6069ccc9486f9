"""Images without labels, given out as the labelled ones are: of their size, normalized and augmented like them."""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nbcompile.core.errors import UsageError
from nbcompile.image_files import SUFFIXES
from nbcompile.training.data.base import Data, Images
from nbcompile.training.data.load import loaded
from nbcompile.training.data.pictures import Files
from nbcompile.training.data.subset import some_of
from nbcompile.training.data.unlabeled.alike import made_like
from nbcompile.training.engine import is_main_process
from nbcompile.training.options.config import TrainConfig
from nbcompile.training.options.unlabeled import REST

log = logging.getLogger("nbcompile")


def load_unlabeled(config: TrainConfig, data: Data) -> Images:
    """The images that ``config.unlabeled`` names; their labels mean nothing.

    Args:
        config: also gives ``skip_broken``.
        data: the labelled set.

    Raises:
        UsageError: if there are none, they cannot be read, or they cannot be made like the labelled ones.
    """
    spec = config.unlabeled or ""
    if spec == REST:
        return left_out(data)
    kind, _, rest = spec.partition(":")
    named = f"unlabeled {spec}"
    if kind == "imagefolder" and rest:
        return made_like(images_under(Path(rest), named), data, named, config)
    other = replace(config, data=spec, input_size=None, train_images=None)
    try:
        found = loaded(other, data.shape[-1])
    except UsageError as error:
        raise UsageError(f"unlabeled: {error}") from error
    if len(found.train) == 0:
        raise UsageError(f"{named} has no images to train on")
    _say_ignored(named)
    return made_like(found, data, named, config)


def left_out(data: Data) -> Images:
    """The training images of which ``data`` has some, without those.

    Raises:
        UsageError: if none are left.
    """
    chosen: Any = data.train  # some of the images of its set
    left = torch.ones(len(chosen.images), dtype=torch.bool)
    left[chosen.indices.cpu()] = False
    if not left.any():
        raise UsageError(f"unlabeled {REST}: train_images {len(chosen)} leaves no image of {data.name} out")
    return some_of(chosen.images, left.nonzero().flatten())


def images_under(folder: Path, named: str) -> Files:
    """All images in ``folder`` and in folders in it, by path; where it has a ``train``, those in there.

    Raises:
        UsageError: if there are none.
    """
    root = folder / "train" if (folder / "train").is_dir() else folder
    if not root.is_dir():
        raise UsageError(f"{named}: {root} is no folder")
    files = [Path(where) / name for where, _, names in os.walk(root, followlinks=True) for name in names]
    images = sorted(file for file in files if file.suffix.lower() in SUFFIXES)
    if not images:
        raise UsageError(f"{named} has no images: none of {', '.join(SUFFIXES)} in {root}, or in folders in it")
    if any(image.parent != root for image in images):
        _say_ignored(named)
    return Files([(str(image), 0) for image in images])


def _say_ignored(named: str) -> None:
    if is_main_process():
        log.warning("%s: its labels are ignored", named)
