"""What the options of a training run must keep."""

import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

from nbcompile.core.errors import UsageError
from nbcompile.training.methods import METHODS, SELF, MethodRow

if TYPE_CHECKING:
    from nbcompile.training.config import TrainConfig

CHOICES = {
    "precision": ("32-true", "bf16-mixed"),
    "decay": ("linear", "cosine"),
    "contract_at": ("end", "decay"),
}

_POSITIVE = (
    *("epochs", "batch_size", "accumulate", "lr", "ratio", "devices", "input_size", "train_images"),
    *("inserted_lr", "temperature"),
)
_NOT_NEGATIVE = (
    *("weight_decay", "warmup_epochs", "seed", "plain_epochs", "giant_epochs", "plt_epochs", "num_workers"),
    "inserted_weight_decay",
)
_BELOW_1 = ("momentum", "label_smoothing", "ema")


def check(config: "TrainConfig") -> None:
    """Check every option by itself, then those that depend on each other.

    Raises:
        UsageError: with the option, its bound and its value.
    """
    for name, known in {"method": tuple(METHODS), **CHOICES}.items():
        if getattr(config, name) not in known and (name, getattr(config, name)) != ("method", None):
            raise UsageError(f"{name} must be one of {', '.join(known)}, not '{getattr(config, name)}'")
    for name in _POSITIVE:
        _check(config, name, "> 0", lambda x: x > 0)
    for name in _NOT_NEGATIVE:
        _check(config, name, ">= 0", lambda x: x >= 0)
    for name in _BELOW_1:
        _check(config, name, "in [0, 1)", lambda x: 0 <= x < 1)
    _check(config, "kd_weight", "in [0, 1]", lambda x: 0 <= x <= 1)
    _check_rate(config)
    if config.expands:
        _check_phases(config)
    _check_teacher(config)


def _check(config: "TrainConfig", name: str, bound: str, fine: Callable[[float], bool]) -> None:
    value = getattr(config, name)
    if value is not None and not (math.isfinite(value) and fine(value)):
        raise UsageError(f"{name} must be {bound}, not {value}")


def _check_rate(config: "TrainConfig") -> None:
    if config.warmup >= config.epochs:
        raise UsageError(f"warmup_epochs must be less than epochs {config.epochs}, not {config.warmup_epochs}")
    points = (config.warmup, *config.restarts, config.epochs)
    if config.restarts and any(a >= b for a, b in pairwise(points)):
        raise UsageError(
            f"restarts must rise, between the warm-up of {config.warmup:g} epochs and epochs {config.epochs}, "
            f"not {', '.join(map(str, config.restarts))}"
        )
    if config.batch_size % config.accumulate:
        raise UsageError(f"batch_size {config.batch_size} must be a multiple of accumulate {config.accumulate}")


def _check_phases(config: "TrainConfig") -> None:
    giant, decay, tune = config.phases
    if tune > config.epochs or decay >= config.epochs:
        plain = f"plain_epochs {giant} + " if giant else ""
        raise UsageError(
            f"{plain}giant_epochs {decay - giant} + plt_epochs {tune - decay} do not fit into epochs "
            f"{config.epochs}: the slopes would not reach 1"
        )
    if tune == giant and config.contract_at == "decay":
        raise UsageError("contract_at='decay' needs giant_epochs or plt_epochs: nothing would be trained as a giant")
    if config.collapse and config.contract_at == "decay":
        raise UsageError("collapse trains the giant in weight space, contract_at='decay' has none left: choose one")


def _check_teacher(config: "TrainConfig") -> None:
    own = " or ".join(row.name for row in METHODS.values() if row.distils and row.expands)
    if config.distils and config.teacher is None:
        raise UsageError(f"method '{config.method}' needs a teacher: a file or a MODEL; {own} can have '{SELF}'")
    if config.teacher is not None and not config.distils:
        known = " or ".join(row.name for row in METHODS.values() if row.distils)
        raise UsageError(f"method '{config.method}' has no teacher: choose {known}")
    if config.teacher == SELF and not config.expands:
        raise UsageError(f"teacher '{SELF}' is the giant before its slopes rise: it needs method {own}")
    if config.teacher_model is not None and config.teacher in (None, SELF):
        raise UsageError("teacher_model goes with a file of weights as teacher")


def check_named(config: "TrainConfig", row: MethodRow) -> None:
    """Check that nothing is lost which is meant for one method, where ``row`` is taken because none is named.

    Raises:
        UsageError: if an option is not at its default and goes with other methods only.
    """
    given = {field.name for field in dataclasses.fields(config) if getattr(config, field.name) != field.default}
    for name in sorted(given - set(row.takes)):
        if takers := [one.name for one in METHODS.values() if name in one.takes]:
            raise UsageError(f"{name} goes with method {' or '.join(takers)}, not with {row.name}: name the method")
