"""Images as inputs of a network, made exactly as `nbcompile.training` makes the ones that are measured on.

The checkpoint records how: ``scale`` (of pixel values), ``mean`` and ``std`` (per channel, of scaled values), and
``crop``, where a centre crop is taken: its side over the shorter side of the resized image.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nbcompile.core.errors import UsageError, missing_extra
from nbcompile.core.example import Inputs
from nbcompile.image_files import SUFFIXES, opened

_MODES = {1: "L", 3: "RGB"}
"""Pillow's modes, by the number of channels."""


def images_in(folder: Path) -> list[Path]:
    """The images in ``folder``, at any depth, sorted.

    Raises:
        UsageError: if there is none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise UsageError(f"calibration {folder} holds no images; these count: {', '.join(SUFFIXES)}")
    return paths


def input_of(path: Path, shape: tuple[int, ...], preprocessing: Mapping[str, Any]) -> tuple[Tensor, tuple[int, int]]:
    """One image as an input without batch, and the size (width, height) that it has in its file.

    With ``crop`` and a square input, the shorter side is resized and the centre taken, as
    `nbcompile.training.data.imagefolder` does; else the whole image is resized, as `nbcompile.training.data.in_memory`
    does.

    Args:
        path: of the image.
        shape: of the input: (C, H, W), C 1 or 3.
        preprocessing: from the checkpoint.

    Raises:
        UsageError: if Pillow is missing, the image cannot be read, or ``preprocessing`` does not say how.
    """
    scale, mean, std = _recorded(preprocessing, shape[0])
    image = _opened(path, _MODES[shape[0]])
    size: tuple[int, int] = image.size
    if "crop" in preprocessing and shape[1] == shape[2]:
        image = _centre(image, shape[1], preprocessing["crop"])
    pixels = torch.from_numpy(np.array(image)).reshape(image.height, image.width, shape[0]).permute(2, 0, 1)
    x = pixels.float() * scale
    if float(x.max()) > 1 + 1e-6:  # 255 × (1 / 255) is 1 and a rounding
        raise UsageError(
            f"{path} has pixels up to {int(pixels.max())}, more than the {1 / scale:.0f} that the network takes for "
            f"white (scale {scale:g} of its preprocessing)"
        )
    if tuple(x.shape[1:]) != shape[1:]:
        x = F.interpolate(x.unsqueeze(0), size=shape[1:], mode="bilinear", antialias=True).squeeze(0)
    return (x - mean) / std, size


def inputs_of_bytes(inputs: Inputs, preprocessing: Mapping[str, Any]) -> np.ndarray | None:
    """What each byte of an image becomes, ``(C, 256)``, as `input_of` computes it; None where nobody says how.

    Args:
        inputs: of the network.
        preprocessing: from the checkpoint.

    Raises:
        UsageError: if ``preprocessing`` does not fit the inputs.
    """
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not inputs[0].is_floating_point():
        return None
    if inputs[0].ndim != 4 or inputs[0].shape[1] not in _MODES or not {"scale", "mean", "std"} <= preprocessing.keys():
        return None
    channels = inputs[0].shape[1]
    scale, mean, std = _recorded(preprocessing, channels)
    x = torch.arange(256).float() * scale
    values: np.ndarray = ((x.expand(channels, 1, 256) - mean) / std).squeeze(1).numpy()
    return values


def _recorded(preprocessing: Mapping[str, Any], channels: int) -> tuple[float, Tensor, Tensor]:
    """Scale, and mean and std in a shape that broadcasts over an image."""
    missing = [key for key in ("scale", "mean", "std") if key not in preprocessing]
    if missing:
        raise UsageError(
            f"calibration from images needs to know how images become inputs; of the network's preprocessing "
            f"{', '.join(missing)} is not known. `nbcompile train` records it; else give "
            f"preprocessing={{'scale': 1 / 255, 'mean': [...], 'std': [...]}}, or an .npz of inputs that are ready"
        )
    given = {key: _numbers(key, preprocessing[key]) for key in ("scale", "mean", "std", "crop") if key in preprocessing}
    for key, values in given.items():
        wanted = (1,) if key in ("scale", "crop") else (1, channels)
        if len(values) not in wanted:
            takes = "it is one number" if wanted == (1,) else f"the network takes {channels} channels"
            raise UsageError(f"preprocessing: {key} has {len(values)} values, {takes}")
        if key != "mean" and not bool((values > 0).all()):
            raise UsageError(f"preprocessing: {key}={preprocessing[key]!r} is not above 0")
    if "crop" in given and given["crop"].item() > 1:
        raise UsageError(f"preprocessing: crop={preprocessing['crop']!r} is above 1, the whole of the shorter side")
    return float(given["scale"]), given["mean"].reshape(-1, 1, 1), given["std"].reshape(-1, 1, 1)


def _numbers(key: str, value: Any) -> Tensor:
    """One number, or several, of ``preprocessing``.

    Raises:
        UsageError: if ``value`` is something else.
    """
    try:
        numbers = torch.as_tensor(value, dtype=torch.float32).reshape(-1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"preprocessing: {key}={value!r} is no number, and no list of numbers") from error
    if not bool(numbers.isfinite().all()):
        raise UsageError(f"preprocessing: {key}={value!r} is not finite")
    return numbers


def _opened(path: Path, mode: str) -> Any:
    """An image of Pillow, decoded."""
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise missing_extra("tflite", "calibration from a folder of images", "Pillow") from error
    return opened(path, str(path), mode)


def _centre(image: Any, side: int, crop: float) -> Any:
    """The centre of ``image``, after its shorter side became ``side / crop``; rounded as torchvision does."""
    from PIL import Image

    shorter, wanted = min(image.size), round(side / crop)
    if shorter != wanted:
        sides = [int(wanted * length / shorter) for length in image.size]
        image = image.resize(sides, Image.Resampling.BILINEAR)
    left, top = (round((length - side) / 2) for length in image.size)
    return image.crop((left, top, left + side, top + side))
