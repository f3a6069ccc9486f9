"""What a run reads."""

from dataclasses import dataclass

from nbcompile.core.errors import UsageError
from nbcompile.core.options import POSITIVE, READ, option


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError:
        raise UsageError(f"--sizes must be sides in pixels with commas, such as 32,40,48, not '{text}'") from None


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The data set."""

    data: str = option(
        "digits",
        "Data set: digits, cifar10:DIR, imagefolder:DIR with DIR/train/CLASS and DIR/val/CLASS, "
        "torchvision:NAME?root=DIR, voc:DIR (boxes), or package.module:factory",
        panel=READ,
        metavar="DATA",
        offers=("digits", "cifar10:", "imagefolder:", "torchvision:", "voc:"),
        required=True,
    )
    task: str | None = option(
        None,
        "What is learnt from it",
        panel=READ,
        metavar="NAME",
        choices=("classification", "detection"),
        unset="what its labels are for: boxes (voc:) are detected, a MODEL that is no detector gets a head for that",
    )
    train_images: int | None = option(None, "Train on so many images, evenly chosen", bound=POSITIVE, unset="all")
    skip_broken: bool = option(False, "Pass over images that cannot be read, instead of refusing them")
    input_size: int | None = option(
        None,
        "Side of the square input, in pixels",
        panel=READ,
        bound=POSITIVE,
        unset="the data set's own (digits: 8), or the model's",
    )
    sizes: tuple[int, ...] = option(
        (),
        "Sides, with commas, one for each equal part of the run (progressive resolution); the last one is the "
        "network's own, at which it is measured",
        metavar="N,N",
        read=_sizes,
        python="Sides in pixels, one for each equal part of the run (progressive resolution); the last one is the "
        "network's own, at which it is measured",
    )
    augment: str = option(
        "light",
        "How images to train on are changed: by shifts, or in files by crops of at least half the area, and mirroring "
        "(light), by crops of at least 8 % (crops), by one of three beside light, or not at all",
        metavar="NAME",
        choices=("light", "crops", "mixup", "cutmix", "autoaugment", "none"),
    )
