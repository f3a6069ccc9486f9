"""The recipe that all methods share."""

from dataclasses import dataclass

from nbcompile.core.errors import UsageError
from nbcompile.core.options import BELOW_1, NOT_NEGATIVE, POSITIVE, option
from nbcompile.training.methods import METHODS, method_help

AVERAGED = 0.04
"""Share of a run that the average of the weights spans by default."""


def _epochs(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(epoch) for epoch in text.split(","))
    except ValueError:
        raise UsageError(f"--restarts must be epochs with commas, such as 25,40, not '{text}'") from None


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """Schedule, optimiser, regularisation."""

    method: str | None = option(None, method_help(), panel="Recipe", metavar="METHOD", offers=tuple(METHODS))
    epochs: int = option(60, "Passes over the training set in the whole run", bound=POSITIVE)
    macs: float | None = option(
        None,
        "Budget of training MACs, giant and teacher included, such as 2.5e15: the run has as many epochs as that pays "
        "for, in place of --epochs",
        bound=POSITIVE,
        unset="none",
    )
    batch_size: int = option(32, "Images per optimiser step, summed over all processes", bound=POSITIVE)
    accumulate: int = option(
        1, "Parts in which a process computes its share of a batch, if memory is short", bound=POSITIVE
    )
    lr: float = option(0.1, "Peak learning rate for one batch of --batch-size", bound=POSITIVE)
    optimizer: str = option(
        "sgd",
        "SGD; or Muon for pointwise convolutions and hidden linear layers, at a fifth of --lr, and SGD for all else",
        metavar="NAME",
        choices=("sgd", "muon"),
    )
    momentum: float = option(0.9, "Of SGD and of Muon", bound=BELOW_1)
    weight_decay: float = option(
        5e-4, "Per optimiser step times --lr; biases and norm parameters get none", bound=NOT_NEGATIVE
    )
    warmup_epochs: float | None = option(
        None, "Epochs of linear warm-up", bound=NOT_NEGATIVE, unset="2, at most a fifth of --epochs"
    )
    restarts: tuple[int, ...] = option(
        (),
        "Epochs, with commas, at which the learning rate starts again at its peak, without warm-up",
        metavar="N,N",
        read=_epochs,
        python="Epochs at which the learning rate starts again at its peak, without warm-up, rising numbers",
    )
    label_smoothing: float = option(0.1, "Share of the target spread over all classes", bound=BELOW_1)
    ema: float | None = option(
        None,
        "Decay per optimiser step of an average of the weights, such as 0.999, which is measured and written "
        "instead of the last ones; 0 keeps none",
        bound=BELOW_1,
        unset="an average over about the last 4 % of the run",
    )
    new_head: bool = option(False, "Transfer: a new last layer for the classes of --data")
    seed: int = option(0, "Of initial weights, data order and augmentation", bound=NOT_NEGATIVE)
