"""``torchvision:NAME?root=DIR``: the classification sets of ``torchvision.datasets`` that come in parts.

Further options go to the data set's class. Where parts have names, ``split`` is the one to train on, and ``val_split``
the one to measure on. Nothing is downloaded.
"""

from typing import Any

import torch
from torch import Tensor

from nbcompile.core.errors import UsageError, missing_extra
from nbcompile.image_files import naming
from nbcompile.spec_strings import close_to, installed, parse, said
from nbcompile.training.data.base import BRIGHTEST, Data, Preparation
from nbcompile.training.data.in_files import transformed_data
from nbcompile.training.data.in_memory import tensor_data

_BY_TRAIN = ("CIFAR10", "CIFAR100", "EMNIST", "FashionMNIST", "KMNIST", "MNIST", "USPS")
"""Sets whose class takes ``train=True`` or ``train=False``."""

_BY_SPLIT = {
    **dict.fromkeys(("Food101", "GTSRB", "STL10", "SVHN", "StanfordCars"), ("train", "test")),
    **dict.fromkeys(("DTD", "Flowers102", "ImageNet", "Imagenette", "RenderedSST2"), ("train", "val")),
    "Country211": ("train", "valid"),
    "FGVCAircraft": ("train", "val"),
    "OxfordIIITPet": ("trainval", "test"),
}
"""Sets whose class takes ``split=``: the parts to train on and to measure on, which is not the test part of three."""

_UNNAMED = {"GTSRB": 43, "SVHN": 10, "USPS": 10}
"""Number of classes, where the set does not name them."""

_IN_MEMORY = (*_BY_TRAIN, "STL10", "SVHN")
"""Sets that torchvision itself reads into one array: ``data``, with ``targets`` or ``labels``."""

_NOT_MIRRORED = ("EMNIST", "GTSRB", "KMNIST", "MNIST", "RenderedSST2", "SVHN", "USPS")
"""Letters, digits and signs: a mirror image means something else."""

_OURS = ("download", "train", "transform", "target_transform", "transforms", "target_types", "loader")
"""Options of torchvision's classes that are nbcompile's to choose."""


class DatasetPictures:
    """Images of a data set of torchvision.

    Args:
        dataset: gives images of Pillow and labels.
        what: the part, in messages.
    """

    def __init__(self, dataset: Any, what: str) -> None:
        self.dataset, self.what = dataset, what

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        """What messages call one image."""
        return f"image {index} of {self.what}"

    def label(self, index: int) -> int:
        """Of one image, which is decoded for it."""
        return self.read(index)[1]

    def read(self, index: int) -> tuple[Any, int]:
        """One image, decoded, in RGB, and its label.

        Raises:
            UsageError: if it cannot be read, with its name.
        """
        with naming(self.name(index)):
            image, label = self.dataset[index]
            return image.convert("RGB"), int(label)


def load_torchvision(
    spec: str,
    input_size: int | None,
    default_size: int | None,
    skip_broken: bool = False,
    how: Preparation | None = None,
) -> Data:
    """The data set that ``spec`` names.

    Args:
        spec: ``torchvision:NAME?root=DIR``.
        input_size: side of the images given out, in pixels; None is their own, or ``default_size``.
        default_size: for sets whose images differ in size.
        skip_broken: leave out images that cannot be read.
        how: gives augmentation, and when images are held in memory.

    Raises:
        UsageError: if torchvision is missing, has no such set, does not find it, or does not take an option; if the
            images cannot be augmented so.
    """
    _, name, options = parse(spec)
    return from_torchvision(spec, name, options, input_size, default_size, skip_broken, how or Preparation())


def from_torchvision(
    spec: str,
    name: str,
    options: dict[str, Any],
    input_size: int | None,
    default_size: int | None,
    skip_broken: bool,
    how: Preparation,
) -> Data:
    """As ``load_torchvision``, of a ``spec`` that is parsed."""
    datasets = installed("torchvision.datasets", missing_extra("train", f"'{spec}'", "torchvision"))
    known = (*_BY_TRAIN, *_BY_SPLIT)
    if name not in known:
        raise UsageError(f"'{spec}': no '{name}'{close_to(name, known)}; nbcompile takes {', '.join(sorted(known))}")
    if refused := [key for key in _OURS if key in options]:
        raise UsageError(f"'{spec}': option '{refused[0]}' is not taken: nbcompile chooses it, and downloads nothing")
    if "root" not in options:
        raise UsageError(f"'{spec}' needs the folder that the set is in: write torchvision:{name}?root=DIR")
    train, val = (_opened(spec, name, datasets, chosen) for chosen in _parts(name, options))
    classes = _classes(name, train)
    if _classes(name, val) != classes:
        raise UsageError(f"{spec}: the part to train on and the one to measure on have different classes")
    mirror = name not in _NOT_MIRRORED
    if name in _IN_MEMORY:
        training, measured = (_tensors(spec, part, len(classes)) for part in (train, val))
        about: Any = {"scale": 1 / BRIGHTEST, "size": input_size, "mirror": mirror, "augment": how.augment}
        return tensor_data(spec, training, measured, classes, **about)
    return transformed_data(
        spec,
        DatasetPictures(train, f"{spec}, training part"),
        DatasetPictures(val, f"{spec}, validation part"),
        classes,
        size=input_size or default_size,
        mirror=mirror,
        skip_broken=skip_broken,
        how=how,
    )


def _parts(name: str, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the two parts."""
    options = {**options, "root": str(options["root"])}  # a folder called 2024 was read as a number
    if name in _BY_TRAIN:
        return {**options, "train": True}, {**options, "train": False}
    train, val = _BY_SPLIT[name]
    val = options.pop("val_split", val)
    return {"split": train, **options}, {**options, "split": val}


def _opened(spec: str, name: str, datasets: Any, options: dict[str, Any]) -> Any:
    root = options["root"]
    try:
        return getattr(datasets, name)(**options)
    except (RuntimeError, OSError) as error:
        raise UsageError(
            f"'{spec}': torchvision does not find {name} in {root}, or not whole ({said(error)}); nbcompile downloads "
            f"nothing: torchvision.datasets.{name}({root!r}, ..., download=True) does, where it can"
        ) from error
    except Exception as error:
        raise UsageError(f"opening '{spec}' failed: {said(error)}") from error


def _classes(name: str, dataset: Any) -> tuple[str, ...]:
    if name in _UNNAMED:
        return tuple(str(label) for label in range(_UNNAMED[name]))
    return tuple(label if isinstance(label, str) else ", ".join(label) for label in dataset.classes)


def _tensors(spec: str, dataset: Any, classes: int) -> tuple[Tensor, Tensor]:
    """Pixels ``(N, C, H, W)``, uint8, and labels ``(N,)``."""
    pixels = torch.as_tensor(dataset.data)
    if pixels.ndim == 3:
        pixels = pixels.unsqueeze(1)
    elif pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 3, 1, 2)
    labels = torch.as_tensor(dataset.labels if hasattr(dataset, "labels") else dataset.targets).long()
    if not bool(((labels >= 0) & (labels < classes)).all()):
        raise UsageError(f"'{spec}' has images without a label: choose a split whose images all have one")
    return pixels.contiguous(), labels
