"""What a training run is told: one frozen object, checked once, saved as JSON in the run folder."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from nbcompile.core.errors import UsageError
from nbcompile.core.options import documented
from nbcompile.training.methods import METHODS, MethodRow, default_method
from nbcompile.training.options.data import DataOptions
from nbcompile.training.options.expansion import ExpansionOptions, Phases
from nbcompile.training.options.int8 import Int8Options
from nbcompile.training.options.machine import MachineOptions
from nbcompile.training.options.recipe import AVERAGED, RecipeOptions
from nbcompile.training.options.reparam import ReparamOptions
from nbcompile.training.options.rules import check, check_named, check_wide
from nbcompile.training.options.teacher import TeacherOptions
from nbcompile.training.options.unlabeled import UnlabeledOptions
from nbcompile.training.options.width import WidthOptions


@documented
@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    MachineOptions,
    Int8Options,
    UnlabeledOptions,
    TeacherOptions,
    ReparamOptions,
    WidthOptions,
    ExpansionOptions,
    RecipeOptions,
    DataOptions,
):
    """The reference recipe: SGD with Nesterov momentum, linear warm-up, one cosine to zero, label smoothing.

    Every method gets the same recipe and the same total of epochs.

    Source: NetAug's recipe (Cai et al. 2022, arXiv:2110.08890), on which NetBooster builds (Yu et al. 2023,
    arXiv:2306.13586, sec. 4.1). ``lr``, ``batch_size`` and ``weight_decay`` were tuned on digits, for ``vanilla``
    alone. ``temperature``: at 1 the target is a distribution, a mixture of label and answer. At 4, with which Tian et
    al. 2020, arXiv:1910.10699, have ``kd_weight`` 0.9, all classes count about the same: that helps on ten classes
    (docs/accuracy.md); for many classes 1 is our choice, and has not been measured.
    """

    def __post_init__(self) -> None:
        if not isinstance(self.where, str):
            object.__setattr__(self, "where", tuple(self.where))
        for name in ("restarts", "factors", "inner", "sizes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check(self)

    @property
    def method_row(self) -> MethodRow:
        """The method; where none is named, that for a network which is no giant yet."""
        return default_method(teacher=self.is_taught) if self.method is None else METHODS[self.method]

    @property
    def is_taught(self) -> bool:
        """Whether there is a teacher, or what one has answered."""
        return self.teacher is not None or self.stored_labels is not None

    @property
    def teachers(self) -> tuple[str, ...]:
        """Each of the teachers by itself; commas in parentheses, as in ``?dims=(1,2)``, divide nothing."""
        return () if self.teacher is None else tuple(re.split(r",(?![^()]*\))", self.teacher))

    @property
    def views(self) -> int:
        """Stored views of each image that the run uses."""
        return self.epochs if self.stored_views is None else self.stored_views

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
        row = default_method(giant=giant, wide=wide, teacher=self.is_taught)
        check_named(self, row)
        return dataclasses.replace(self, method=row.name)

    @property
    def mimics(self) -> bool:
        """Whether the method also learns from images without labels."""
        return self.method_row.mimics

    @property
    def unlabeled_share(self) -> float:
        """Images without labels per labelled one."""
        return (self.unlabeled_batch or self.batch_size) / self.batch_size

    @property
    def warmup(self) -> float:
        """Length of the linear warm-up, in epochs."""
        return min(2.0, self.epochs / 5) if self.warmup_epochs is None else self.warmup_epochs

    @property
    def all_epochs(self) -> int:
        """Epochs of the run, with those of the finish."""
        return self.epochs + (self.int8 or 0)

    @property
    def finish_lr(self) -> float:
        """Peak learning rate of the finish."""
        return self.lr / 100 if self.int8_lr is None else self.int8_lr

    def ema_decay(self, steps_per_epoch: int, epochs: int | None = None) -> float:
        """Per optimiser step, of the average of the weights; 0 where there is none.

        Args:
            steps_per_epoch: optimiser steps.
            epochs: that it is of; None: all but those of the finish.

        By default ``1 - 1 / n``, where ``n`` steps are 4 % of the run: an average spans about ``n`` steps. That is the
        share of torchvision's references, whose decay follows from batch size and epochs (0.99998 to the power of
        ``32 B / E`` every 32 steps: 50,000 images an epoch of the run, 3.9 % of ImageNet); a run of so few steps that
        ``n`` is 1 keeps none.
        """
        if self.ema is not None:
            return self.ema
        return 1 - 1 / max(1.0, AVERAGED * (epochs or self.epochs) * steps_per_epoch)

    @property
    def side(self) -> int | None:
        """Of the images that are measured, in pixels; None: the data set's own, or the model's."""
        return self.sizes[-1] if self.sizes else self.input_size

    def side_in(self, epoch: int) -> int | None:
        """Of the images that ``epoch``, counted from 0, trains on; None where none are named."""
        return self.sizes[epoch * len(self.sizes) // self.epochs] if self.sizes else self.input_size

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
