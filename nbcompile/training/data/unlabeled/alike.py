"""Images of one set, given out like those of another: of their size, normalized and augmented in the same way."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nbcompile.core.errors import UsageError
from nbcompile.training.data.base import Data, Images
from nbcompile.training.data.cropped_images import CentredImages, CroppedImages, shrunk
from nbcompile.training.data.held import Held, InFiles, hold, needed
from nbcompile.training.data.in_files import MEGABYTE
from nbcompile.training.data.in_memory import TensorImages
from nbcompile.training.data.pictures import Files, Pictures, readable
from nbcompile.training.options.config import TrainConfig

_KNOWN = CroppedImages | CentredImages | TensorImages


class Pixels:
    """Images in memory, as images of Pillow.

    Args:
        pixels: each ``(3, H, W)``, uint8.
        what: the set, in messages.
    """

    def __init__(self, pixels: Sequence[Tensor] | Tensor, what: str) -> None:
        self.pixels, self.what = pixels, what

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, index: int) -> str:
        """What messages call one image."""
        return f"image {index} of {self.what}"

    def label(self, index: int) -> int:
        """None that means anything."""
        return 0

    def read(self, index: int) -> tuple[Any, int]:
        """One image, and no label that means anything."""
        from PIL import Image

        return Image.fromarray(self.pixels[index].permute(1, 2, 0).numpy()), 0


def made_like(found: Files | Data, data: Data, named: str, config: TrainConfig) -> Images:
    """``found``, given out as the training images of ``data`` are.

    Args:
        found: image files, or a data set, of which the training images are taken.
        data: as its own training images are.
        named: what messages call ``found``.
        config: gives ``skip_broken`` and ``memory``.

    Raises:
        UsageError: if there are other channels, images that cannot be read, or images whose normalization is not known.
    """
    given: Any = data.train
    while hasattr(given, "images"):  # some have been chosen
        given = given.images
    source = found if isinstance(found, Files) else found.train
    if not isinstance(source, Files | _KNOWN) or not isinstance(given, _KNOWN):
        return _as_it_is(found, data, named)
    channels = source.pixels.shape[1] if isinstance(source, TensorImages) else 3
    if channels != data.shape[0]:
        raise UsageError(f"{named} has images of {channels} channels, those of {data.name} have {data.shape[0]}")
    if isinstance(given, TensorImages):
        return _in_memory(source, given, named, config.skip_broken)
    pictures = _pictures(source, named)
    if isinstance(given, CroppedImages):
        shape = partial(shrunk, size=given.size, least=given.least)
        if isinstance(given.source, Held) and needed(pictures, shape) <= config.memory * MEGABYTE:
            return given.over(hold(pictures, shape, named, skip_broken=config.skip_broken))
    indices = list(range(len(pictures)))
    if config.skip_broken:
        indices, _, _ = readable(pictures, _nothing, named, skip_broken=True)
    return given.over(InFiles(pictures, indices))


def _as_it_is(found: Files | Data, data: Data, named: str) -> Images:
    """The images of a factory, which are ready for the network."""
    if isinstance(found, Files) or isinstance(found.train, _KNOWN):
        raise UsageError(
            f"{named}: the factory of {data.name} normalizes its images itself, so those without labels must come from "
            "a factory, too"
        )
    if found.shape != data.shape:
        sizes = ("×".join(map(str, one.shape)) for one in (found, data))
        raise UsageError(f"{named} has images of {next(sizes)}, those of {data.name} are {next(sizes)}")
    return found.train


def _in_memory(source: Any, given: TensorImages, named: str, skip_broken: bool) -> TensorImages:
    size = cast("tuple[int, int]", tuple(given.pixels.shape[2:]))
    if isinstance(source, TensorImages):
        pixels = _resized(source.pixels, size, source.scale / given.scale)
    else:
        _, _, images = readable(_pictures(source, named), _fitted(size), named, skip_broken=skip_broken)
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    preprocessing = {"scale": given.scale, "size": given.size}
    preprocessing |= {name: getattr(given, name).flatten().tolist() for name in ("mean", "std")}
    labels = torch.zeros(len(pixels), dtype=torch.int64)
    return TensorImages(pixels, labels, preprocessing, augment=given.augment, mirror=given.mirror)


def _pictures(source: Any, named: str) -> Pictures:
    """``source`` as images of Pillow."""
    if isinstance(source, TensorImages):
        return Pixels(source.pixels, named)
    if isinstance(source, CroppedImages | CentredImages):
        held = source.source
        return Pixels([held.image(i) for i in range(len(held))], named) if isinstance(held, Held) else _listed(held)
    files: Pictures = source
    return files


def _listed(source: Any) -> Pictures:
    """Those images in files that can be read."""
    if isinstance(source.pictures, Files):
        samples = [source.pictures.samples[i] for i in source.indices]
        return Files(samples, None if source.pictures.archive is None else Path(str(source.pictures.archive.filename)))
    pictures: Pictures = source.pictures
    return pictures


def _fitted(size: tuple[int, int]) -> Any:
    """What makes an image of Pillow pixels ``(H, W, 3)``: the largest part of that form in its middle, resized."""

    def take(image: Any, name: str) -> np.ndarray:
        from PIL import Image, ImageOps

        return np.asarray(ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR))

    return take


def _resized(pixels: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    """``pixels`` ``(N, C, H, W)``, uint8, at ``size``, times ``scale``."""
    if tuple(pixels.shape[2:]) == size and scale == 1:
        return pixels
    parts = []
    for some in torch.split(pixels, 1024):  # floats take four times the memory
        values = F.interpolate(some.float(), size=size, mode="bilinear", antialias=True) * scale
        parts.append(values.round_().clamp_(0, 255).byte())
    return torch.cat(parts)


def _nothing(image: Any, name: str) -> None:
    """What is kept of an image that can be read."""
