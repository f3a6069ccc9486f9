"""Giants in depth."""

from dataclasses import dataclass
from typing import NamedTuple

from nbcompile.core.options import NOT_NEGATIVE, POSITIVE, option


class Phases(NamedTuple):
    """Where the phases of netbooster begin, in epochs counted from 0; the last one ends with the run.

    Attributes:
        giant: the network is expanded, and trained as a giant.
        decay: the slopes start to rise.
        tune: the slopes are 1.
    """

    giant: int
    decay: int
    tune: int


@dataclass(frozen=True, kw_only=True)
class ExpansionOptions:
    """Which layers become which blocks, and when they are linear."""

    where: str | tuple[str, ...] = option(
        "uniform:0.5",
        "Layers: all, uniform:F, first:N, middle:N, last:N, or names and globs with commas",
        panel="Expansion",
        metavar="WHERE",
        offers=("all", "uniform:", "first:", "middle:", "last:"),
        python="Layers, of a network that is no giant yet, as in ``nbcompile.expand``",
    )
    block: str = option(
        "inverted-residual",
        "What they become: inverted-residual, bottleneck or basic",
        metavar="BLOCK",
        offers=("inverted-residual", "bottleneck", "basic"),
    )
    ratio: int = option(6, "Hidden width over the layer's input channels", bound=POSITIVE)
    preserve: bool = option(False, "Keep each layer as a parallel branch: the function is unchanged")
    plain_epochs: int = option(
        0,
        "Epochs before the network is expanded; best with --preserve",
        panel="Phases (netbooster)",
        bound=NOT_NEGATIVE,
    )
    giant_epochs: int | None = option(
        None, "Epochs before the slopes start to rise", bound=NOT_NEGATIVE, unset="half of those after --plain-epochs"
    )
    plt_epochs: int | None = option(
        None,
        "E_d, epochs of the rise; 0 removes the activations at once",
        bound=NOT_NEGATIVE,
        unset="20 % of those after --giant-epochs, at least 1",
    )
    decay: str = option("linear", "How the slopes rise", metavar="SHAPE", choices=("linear", "cosine"))
    rise: str = option(
        "together",
        "Whether the blocks' slopes rise together, or one after the other",
        metavar="NAME",
        choices=("together", "from-input", "cheapest-first"),
    )
    plt_loss: float | None = option(
        None,
        "Nats by which the training loss may exceed the giant's while the slopes rise: they wait where it does, and "
        "have risen after --plt-epochs at the latest",
        bound=POSITIVE,
        unset="they rise evenly",
    )
    contract_at: str = option(
        "end",
        "When the giant becomes the tiny network: at the end of the run, or of the rise (it then trains on)",
        metavar="WHEN",
        choices=("end", "decay"),
    )
    collapse: bool = option(False, "After the decay train in weight space, as nbcompile.collapse_ does: faster")
    inserted_lr: float = option(1.0, "Of inserted layers, a factor on --lr", bound=POSITIVE)
    inserted_weight_decay: float = option(1.0, "Of inserted layers, a factor on --weight-decay", bound=NOT_NEGATIVE)
