"""What every data set looks like to the loop."""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from nbcompile.core.errors import UsageError
from nbcompile.training.config import TrainConfig

Batch = tuple[Tensor, Tensor]

KINDS = "digits, cifar10:DIR, imagefolder:DIR, torchvision:NAME?root=DIR or package.module:factory"


class Images(Protocol):
    """A set of labelled images that is read a batch at a time."""

    @property
    def labels(self) -> Tensor:
        """Labels ``(N,)`` of all images, int64, without augmentation; it may take a pass over them."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, indices: list[int]) -> Batch | UsageError:
        """Images ``(N, C, H, W)`` and labels ``(N,)``; a UsageError *returned* if one cannot be read.

        Returned and not raised, because a worker process would bury its sentence in its own traceback.
        """


@dataclass(frozen=True)
class Data:
    """A data set, ready to train on.

    Attributes:
        name: as the user wrote it.
        train: augmented.
        val: as it is; accuracy is measured here.
        classes: names, in the order of the labels.
        shape: ``(C, H, W)`` of one image.
        preprocessing: how raw images become inputs; kept in the trained file.
    """

    name: str
    train: Images
    val: Images
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    preprocessing: dict[str, Any] = field(default_factory=dict)


def load_data(config: TrainConfig, default_size: int | None = None) -> Data:
    """The data set that ``config.data`` names.

    Args:
        config: also gives ``input_size``, ``train_images`` and ``skip_broken``.
        default_size: side of the model's input, in pixels, if known; sets whose images differ in size need one of
            the two.

    Raises:
        UsageError: if there is no such data set, or it is not usable.
    """
    data = _loaded(config, default_size)
    if len(data.classes) < 2:
        named = f", '{data.classes[0]}'" if data.classes else ""
        raise UsageError(f"{data.name} has {len(data.classes)} class{named}: training needs at least two")
    for part, images in (("train on", data.train), ("measure on", data.val)):
        if len(images) == 0:
            raise UsageError(f"{data.name} has no images to {part}")
    if config.train_images is None:
        return data
    from nbcompile.training.choosing import chosen

    return replace(data, train=chosen(data, config.train_images))


def _loaded(config: TrainConfig, default_size: int | None) -> Data:
    """The data set of the kind before the first colon; kinds are imported when they are asked for."""
    kind, _, rest = config.data.partition(":")
    side, skip = config.input_size or default_size, config.skip_broken
    if kind == "digits" and not rest:
        from nbcompile.training.digits import load_digits

        return load_digits(config.input_size)
    if kind == "cifar10" and rest:
        from nbcompile.training.cifar10 import load_cifar10

        return load_cifar10(rest, config.input_size, skip)
    if kind == "imagefolder" and rest:
        from nbcompile.training.imagefolder import load_imagefolder

        return load_imagefolder(rest, side, skip)
    if kind == "torchvision" and rest:
        from nbcompile.training.torchvision_data import load_torchvision

        return load_torchvision(config.data, config.input_size, default_size, skip)
    if rest.partition("?")[0].isidentifier():
        from nbcompile.training.factory_data import load_factory

        return load_factory(config.data, config.input_size)
    raise UsageError(f"data must be {KINDS}, not '{config.data}'")
