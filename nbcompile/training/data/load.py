"""The data set that ``--data`` names."""

import logging
from dataclasses import replace

import torch

from nbcompile.core.errors import UsageError
from nbcompile.training.data.base import DATA_KINDS, Data, Images, Preparation, Views
from nbcompile.training.data.crops import SMALL
from nbcompile.training.engine import is_main_process
from nbcompile.training.options.config import TrainConfig

log = logging.getLogger("nbcompile")


def load_data(config: TrainConfig, default_size: int | None = None) -> Data:
    """The data set that ``config.data`` names.

    Args:
        config: also gives ``input_size`` or ``sizes``, ``train_images``, ``augment``, ``memory`` and ``skip_broken``.
        default_size: side of the model's input, in pixels, if known; sets whose images differ in size need one of
            the two.

    Raises:
        UsageError: if there is no such data set, or it is not usable.
    """
    data = loaded(config, default_size)
    if len(data.classes) < data.task.fewest_classes:
        named = f", '{data.classes[0]}'" if data.classes else ""
        raise UsageError(f"{data.name} has {len(data.classes)} class{named}: training needs at least two")
    if config.task not in (None, data.task.name):
        raise UsageError(f"task {config.task}: the labels of {data.name} are for {data.task.name}")
    for part, images in (("train on", data.train), ("measure on", data.val)):
        if len(images) == 0:
            raise UsageError(f"{data.name} has no images to {part}")
    if config.sizes and data.resize is None:
        raise UsageError(f"sizes: {data.name} decides the size of its images itself")
    if config.train_images is not None:
        from nbcompile.training.data.subset import chosen

        data = replace(data, train=chosen(data, config.train_images))
    return _mixed(data, config.augment)


def hold_on(data: Data, device: torch.device) -> None:
    """Hold the images of ``data`` on ``device``, where their views are drawn and made from now on.

    Raises:
        UsageError: if that cannot be.
    """
    for images in (data.train, data.val):
        hold_images_on(images, data.name, device)


def hold_images_on(images: Images, named: str, device: torch.device) -> None:
    """Hold images on ``device``, likewise.

    Args:
        images: one part of a set.
        named: what messages call the set.
        device: where to.

    Raises:
        UsageError: if that cannot be.
    """
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device_images: views are made on a CUDA GPU or the CPU, and the run is on '{device.type}'")
    if not (isinstance(images, Views) and images.hold_on(device)):
        raise UsageError(
            f"device_images: those of {named} cannot be made on a device: that takes images of one size, "
            f"of at most {SMALL} pixels, in memory, with augment light, crops or none"
        )


def _mixed(data: Data, augment: str) -> Data:
    """With batches whose images are mixed, if ``augment`` says so."""
    from nbcompile.training.data.augmentations import ALPHA, HURTS, Mixed

    if augment in HURTS and is_main_process():
        log.warning("augment %s is reported to cost tiny networks accuracy: %s", augment, HURTS[augment])
    return replace(data, train=Mixed(data.train, augment, len(data.classes))) if augment in ALPHA else data


def loaded(config: TrainConfig, default_size: int | None) -> Data:
    """All of the data set of the kind before the first colon; kinds are imported when they are asked for.

    Args:
        config: see `load_data`.
        default_size: likewise.

    Raises:
        UsageError: as there; one class will do, and so will no image.
    """
    kind, _, rest = config.data.partition(":")
    side, skip = config.side or default_size, config.skip_broken
    how = Preparation(augment=config.augment, largest=max(config.sizes, default=None), memory=config.memory)
    if kind == "digits" and not rest:
        from nbcompile.training.data.digits import load_digits

        return load_digits(config.side, config.augment)
    if kind == "cifar10" and rest:
        from nbcompile.training.data.cifar10 import load_cifar10

        return load_cifar10(rest, config.side, skip, how)
    if kind == "imagefolder" and rest:
        from nbcompile.training.data.imagefolder import load_imagefolder

        return load_imagefolder(rest, side, skip, how)
    if kind == "torchvision" and rest:
        from nbcompile.training.data.torchvision import load_torchvision

        return load_torchvision(config.data, config.side, default_size, skip, how)
    if kind == "voc" and rest:
        from nbcompile.training.data.boxes.voc import load_voc

        return load_voc(config.data, side, skip)
    if rest.partition("?")[0].isidentifier():
        from nbcompile.training.data.factory import load_factory

        if config.augment in ("crops", "autoaugment", "none"):
            raise UsageError(f"augment '{config.augment}': '{config.data}' augments its images itself")
        return load_factory(config.data, config.side)
    raise UsageError(f"data must be {DATA_KINDS}, not '{config.data}'")
