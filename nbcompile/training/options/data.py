"""What a run reads."""

from dataclasses import dataclass

from nbcompile.core.options import POSITIVE, READ, option


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
