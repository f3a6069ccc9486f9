"""Images without labels."""

from dataclasses import dataclass

from nbcompile.core.options import NOT_NEGATIVE, POSITIVE, option

REST = "rest"
"""The unlabeled images that are the labelled set's own: those which ``train_images`` leaves out."""


@dataclass(frozen=True, kw_only=True)
class UnlabeledOptions:
    """Which ones, and what is learnt from them."""

    unlabeled: str | None = option(
        None,
        "Images without labels: imagefolder:DIR of images, in folders or not; the training images of any other DATA; "
        "or rest, what --train-images leaves out",
        panel="Unlabeled data (mimic)",
        metavar="DATA",
        offers=(REST, "imagefolder:", "cifar10:", "torchvision:"),
    )
    unlabeled_batch: int | None = option(
        None, "Of them per optimiser step, summed over all processes", bound=POSITIVE, unset="as --batch-size"
    )
    unlabeled_pass: str = option(
        "together",
        "How they pass through the network: in one batch with labelled ones, whose norms they then share, or in one of "
        "their own",
        metavar="HOW",
        choices=("together", "apart"),
    )
    mimic_weight: float = option(1.0, "Of the divergence from the teacher, beside the labels' loss", bound=NOT_NEGATIVE)
    adversarial: float = option(
        0.0,
        "Most that the gradient counts by which the feature is to look the same on both sets, such as 0.1; it rises "
        "from 0; 0 aligns nothing",
        bound=NOT_NEGATIVE,
    )
    feature: str | None = option(
        None,
        "The feature to align: a layer's name, or that of a node of the graph",
        metavar="NAME",
        unset="the last that all paths go through at stride 4 or less; in a network that stays there, the middle one",
    )
