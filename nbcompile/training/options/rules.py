"""What the options of a training run must keep."""

import dataclasses
import math
from itertools import pairwise
from typing import TYPE_CHECKING

from nbcompile.core.errors import UsageError
from nbcompile.core.options import options_of
from nbcompile.core.width.factors import check_factors
from nbcompile.training.methods import METHODS, SELF, MethodRow

if TYPE_CHECKING:
    from nbcompile.training.options.config import TrainConfig


def check(config: "TrainConfig") -> None:
    """Check every option by itself, then those that depend on each other.

    Raises:
        UsageError: with the option, its bound and its value.
    """
    for name, said in options_of(type(config)).items():
        value = getattr(config, name)
        if said.choices and value not in said.choices and not (value is None and said.unset):
            raise UsageError(f"{name} must be one of {', '.join(said.choices)}, not '{value}'")
        if said.bound and value is not None and not (math.isfinite(value) and said.bound.keeps(value)):
            raise UsageError(f"{name} must be {said.bound.text}, not {value}")
    if config.method not in (None, *METHODS):
        raise UsageError(f"method must be one of {', '.join(METHODS)}, not '{config.method}'")
    _check_rate(config)
    if config.expands:
        _check_phases(config)
    if config.widens:
        _check_widths(config)
    _check_teacher(config)


def _check_widths(config: "TrainConfig") -> None:
    for name in ("factors", "inner"):
        check_factors(name, getattr(config, name))
    if config.collapse:
        raise UsageError(f"collapse goes with one width alone, not with method '{config.method}'")


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
    for name in ("teacher_model", "teacher_key"):
        if getattr(config, name) is not None and config.teacher in (None, SELF):
            raise UsageError(f"{name} goes with a file of weights as teacher")


def check_named(config: "TrainConfig", row: MethodRow) -> None:
    """Check that nothing is lost which is meant for one method, where ``row`` is taken because none is named.

    Raises:
        UsageError: if an option is not at its default and goes with other methods only.
    """
    given = {field.name for field in dataclasses.fields(config) if getattr(config, field.name) != field.default}
    for name in sorted(given - set(row.takes)):
        if takers := [one.name for one in METHODS.values() if name in one.takes]:
            raise UsageError(f"{name} goes with method {' or '.join(takers)}, not with {row.name}: name the method")


def check_wide(config: "TrainConfig", wide: bool) -> None:
    """Check that a giant in width is trained by a method that trains its widths.

    Raises:
        UsageError: if not.
    """
    if wide and not config.widens:
        known = " or ".join(row.name for row in METHODS.values() if row.widens)
        raise UsageError(f"method '{config.method}' does not train giants in width, as this network is: choose {known}")
