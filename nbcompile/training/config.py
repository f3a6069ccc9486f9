"""What a training run is told: one frozen object, checked once, saved as JSON in the run folder."""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

from nbcompile.core.errors import UsageError
from nbcompile.core.options import BELOW_1, NOT_NEGATIVE, POSITIVE, READ, SHARE, documented, option
from nbcompile.training.methods import METHODS, MethodRow, default_method, method_help
from nbcompile.training.rules import check, check_named, check_wide


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


def _epochs(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(epoch) for epoch in text.split(","))
    except ValueError:
        raise UsageError(f"--restarts must be epochs with commas, such as 25,40, not '{text}'") from None


def _factors(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(factor) for factor in text.split(","))
    except ValueError:
        raise UsageError(f"factors must be numbers with commas, such as 1,1.8,2.6, not '{text}'") from None


RECIPE, EXPANSION, PHASES, TEACHER, MACHINE = "Recipe", "Expansion", "Phases (netbooster)", "Teacher (kd)", "Machine"
WIDTH = "Width"


@documented
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The reference recipe: SGD with Nesterov momentum, linear warm-up, one cosine to zero, label smoothing.

    Every method gets the same recipe and the same total of epochs.

    Source: NetAug's recipe (Cai et al. 2022, arXiv:2110.08890), on which NetBooster builds (Yu et al. 2023,
    arXiv:2306.13586, sec. 4.1). ``lr``, ``batch_size`` and ``weight_decay`` were tuned on digits, for ``vanilla``
    alone. ``temperature`` and ``kd_weight``: Tian et al. 2020, arXiv:1910.10699.
    """

    data: str = option(
        "digits",
        "Data set: digits, cifar10:DIR, imagefolder:DIR with DIR/train/CLASS and DIR/val/CLASS, "
        "torchvision:NAME?root=DIR, or package.module:factory",
        panel=READ,
        metavar="DATA",
        offers=("digits", "cifar10:", "imagefolder:", "torchvision:"),
        required=True,
    )
    train_images: int | None = option(None, "Train on so many images, evenly chosen", bound=POSITIVE, unset="all")
    skip_broken: bool = option(False, "Pass over images that cannot be read, instead of refusing them")
    method: str | None = option(None, method_help(), panel=RECIPE, metavar="METHOD", offers=tuple(METHODS))
    epochs: int = option(60, "Passes over the training set in the whole run", bound=POSITIVE)
    batch_size: int = option(32, "Images per optimiser step, summed over all processes", bound=POSITIVE)
    accumulate: int = option(
        1, "Parts in which a process computes its share of a batch, if memory is short", bound=POSITIVE
    )
    lr: float = option(0.1, "Peak learning rate for one batch of --batch-size", bound=POSITIVE)
    momentum: float = option(0.9, "Of SGD", bound=BELOW_1)
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
    ema: float = option(
        0.0,
        "Decay per optimiser step of an average of the weights, such as 0.999, which is measured and written "
        "instead of the last ones; 0 keeps none",
        bound=BELOW_1,
    )
    new_head: bool = option(False, "Transfer: a new last layer for the classes of --data")
    seed: int = option(0, "Of initial weights, data order and augmentation", bound=NOT_NEGATIVE)
    input_size: int | None = option(
        None,
        "Side of the square input, in pixels",
        panel=READ,
        bound=POSITIVE,
        unset="the data set's own (digits: 8), or the model's",
    )
    where: str | tuple[str, ...] = option(
        "uniform:0.5",
        "Layers: all, uniform:F, first:N, middle:N, last:N, or names and globs with commas",
        panel=EXPANSION,
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
        0, "Epochs before the network is expanded; best with --preserve", panel=PHASES, bound=NOT_NEGATIVE
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
    contract_at: str = option(
        "end",
        "When the giant becomes the tiny network: at the end of the run, or of the rise (it then trains on)",
        metavar="WHEN",
        choices=("end", "decay"),
    )
    collapse: bool = option(False, "After the decay train in weight space, as nbcompile.collapse_ does: faster")
    inserted_lr: float = option(1.0, "Of inserted layers, a factor on --lr", bound=POSITIVE)
    inserted_weight_decay: float = option(1.0, "Of inserted layers, a factor on --weight-decay", bound=NOT_NEGATIVE)
    factors: tuple[float, ...] = option(
        (1, 1.8, 2.6),
        "Widths over the original's, with commas, of channels that several blocks share",
        panel=WIDTH,
        metavar="N,N",
        read=_factors,
        python="Widths over the original's of channels that several blocks share",
    )
    inner: tuple[float, ...] = option(
        (1, 1.6, 2.2, 2.8),
        "Widths over the original's, with commas, of channels within one block",
        metavar="N,N",
        read=_factors,
        python="Widths over the original's of channels within one block",
    )
    wide_epochs: int | None = option(
        None, "Epochs before channels within one block alone are widened", bound=NOT_NEGATIVE, unset="half of --epochs"
    )
    sort_epochs: int | None = option(
        None,
        "Epochs at whose start the network takes the most important channels within a block",
        bound=NOT_NEGATIVE,
        unset="as --wide-epochs",
    )
    divergence: str = option(
        "adaptive",
        "Of the network from its widest, by netdistiller",
        metavar="NAME",
        choices=("adaptive", "forward", "reverse", "balanced"),
    )
    surgery: str = option(
        "widest",
        "By netdistiller: whose gradient gives way where the two are in conflict",
        metavar="NAME",
        choices=("widest", "none"),
    )
    teacher: str | None = option(
        None, "A file, a MODEL, or self: the giant before its slopes rise", panel=TEACHER, metavar="FILE|MODEL|self"
    )
    teacher_model: str | None = option(
        None, "The MODEL whose weights the file holds, where it does not say so", metavar="MODEL"
    )
    teacher_key: str | None = option(
        None, "Which weights of the file, such as state_dict_ema", metavar="KEY", unset="the EMA, if any"
    )
    temperature: float = option(4.0, "T, that softens both distributions", bound=POSITIVE)
    kd_weight: float = option(0.9, "Share of the distillation in the loss", bound=SHARE)
    hint_weight: float = option(
        0.03, "Of the distance between the network's logits and the booster's", panel="Booster (rocket)", bound=POSITIVE
    )
    num_workers: int = option(
        0, "Processes that read and augment images, per training process", panel=MACHINE, bound=NOT_NEGATIVE
    )
    accelerator: str = option(
        "auto",
        "As in Lightning Fabric: auto, cpu, cuda or mps",
        metavar="NAME",
        offers=("auto", "cpu", "cuda", "mps"),
    )
    devices: int = option(1, "Training processes to start; under torchrun, torchrun decides", bound=POSITIVE)
    precision: str = option("32-true", "Of the training step", metavar="NAME", choices=("32-true", "bf16-mixed"))
    compile: bool = option(False, "Let torch.compile compile the training step's forward")
    channels_last: bool = option(False, "Memory format of images and weights")

    def __post_init__(self) -> None:
        if not isinstance(self.where, str):
            object.__setattr__(self, "where", tuple(self.where))
        for name in ("restarts", "factors", "inner"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check(self)

    @property
    def method_row(self) -> MethodRow:
        """The method; where none is named, that for a network which is no giant yet."""
        return default_method(teacher=self.teacher is not None) if self.method is None else METHODS[self.method]

    @property
    def expands(self) -> bool:
        """Whether the method trains a giant."""
        return self.method_row.expands

    @property
    def distils(self) -> bool:
        """Whether the method has a teacher."""
        return self.method_row.distils

    @property
    def widens(self) -> bool:
        """Whether the method trains a giant in width."""
        return self.method_row.widens

    def for_network(self, *, giant: bool, wide: bool = False) -> "TrainConfig":
        """With the method's name, for a network that is a giant, in depth or in width, or not.

        Raises:
            UsageError: if none is named, and an option is given that goes with another one; if it trains no such giant.
        """
        if self.method is not None:
            check_wide(self, wide)
            return self
        row = default_method(giant=giant, wide=wide, teacher=self.teacher is not None)
        check_named(self, row)
        return dataclasses.replace(self, method=row.name)

    @property
    def warmup(self) -> float:
        """Length of the linear warm-up, in epochs."""
        return min(2.0, self.epochs / 5) if self.warmup_epochs is None else self.warmup_epochs

    @property
    def phases(self) -> Phases:
        """Of netbooster."""
        giant = self.plain_epochs
        decay = giant + ((self.epochs - giant) // 2 if self.giant_epochs is None else self.giant_epochs)
        length = max(1, round(0.2 * (self.epochs - decay))) if self.plt_epochs is None else self.plt_epochs
        return Phases(giant, decay, decay + length)

    @property
    def wide_until(self) -> int:
        """Epoch from which channels within blocks alone are widened."""
        return (self.epochs + 1) // 2 if self.wide_epochs is None else self.wide_epochs

    @property
    def sort_until(self) -> int:
        """Epoch from which the network's own channels stay the same."""
        return self.wide_until if self.sort_epochs is None else self.sort_epochs

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON has them."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "TrainConfig":
        """The inverse of ``to_json``.

        Raises:
            UsageError: if a field is unknown, or a value is out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise UsageError(f"no training option is called {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        return cls(**fields)
