"""The data set that ``--data`` names."""

from dataclasses import replace

from nbcompile.core.errors import UsageError
from nbcompile.training.data.base import DATA_KINDS, Data
from nbcompile.training.options.config import TrainConfig


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
    if len(data.classes) < data.task.fewest_classes:
        named = f", '{data.classes[0]}'" if data.classes else ""
        raise UsageError(f"{data.name} has {len(data.classes)} class{named}: training needs at least two")
    if config.task not in (None, data.task.name):
        raise UsageError(f"task {config.task}: the labels of {data.name} are for {data.task.name}")
    for part, images in (("train on", data.train), ("measure on", data.val)):
        if len(images) == 0:
            raise UsageError(f"{data.name} has no images to {part}")
    if config.train_images is None:
        return data
    from nbcompile.training.data.subset import chosen

    return replace(data, train=chosen(data, config.train_images))


def _loaded(config: TrainConfig, default_size: int | None) -> Data:
    """The data set of the kind before the first colon; kinds are imported when they are asked for."""
    kind, _, rest = config.data.partition(":")
    side, skip = config.input_size or default_size, config.skip_broken
    if kind == "digits" and not rest:
        from nbcompile.training.data.digits import load_digits

        return load_digits(config.input_size)
    if kind == "cifar10" and rest:
        from nbcompile.training.data.cifar10 import load_cifar10

        return load_cifar10(rest, config.input_size, skip)
    if kind == "imagefolder" and rest:
        from nbcompile.training.data.imagefolder import load_imagefolder

        return load_imagefolder(rest, side, skip)
    if kind == "torchvision" and rest:
        from nbcompile.training.data.torchvision import load_torchvision

        return load_torchvision(config.data, config.input_size, default_size, skip)
    if kind == "voc" and rest:
        from nbcompile.training.data.voc import load_voc

        return load_voc(config.data, side, skip)
    if rest.partition("?")[0].isidentifier():
        from nbcompile.training.data.factory import load_factory

        return load_factory(config.data, config.input_size)
    raise UsageError(f"data must be {DATA_KINDS}, not '{config.data}'")
