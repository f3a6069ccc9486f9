"""What the options of a training run must keep."""

import dataclasses
import logging
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from nbcompile.core.errors import UsageError
from nbcompile.core.options import flag_of, options_of
from nbcompile.core.width.factors import check_factors
from nbcompile.training.methods import METHODS, ROUTE, SELF, MethodRow
from nbcompile.training.options.unlabeled import REST, UnlabeledOptions

if TYPE_CHECKING:
    from nbcompile.training.options.config import TrainConfig

log = logging.getLogger("nbcompile")


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
    if config.optimizer == "muon" and "branches" in config.method_row.takes:
        raise UsageError(f"method '{config.method}' goes with optimizer sgd: Muon undoes what multiplies gradients")
    if config.macs is None:
        check_schedule(config)
    if config.widens:
        _check_widths(config)
    _check_finish(config)
    _check_device(config)
    _check_teacher(config)
    _check_unlabeled(config)


def check_schedule(config: "TrainConfig") -> None:
    """Check what depends on ``epochs``; with a budget those are known when its run begins.

    Raises:
        UsageError: with what does not fit.
    """
    _check_sizes(config)
    _check_rate(config)
    if config.expands:
        _check_phases(config)


def refuse_two_ends(*, epochs: bool, macs: bool) -> None:
    """Check that not both are given.

    Raises:
        UsageError: if they are.
    """
    if epochs and macs:
        raise UsageError("epochs and macs both say when the run ends: give one of them")


def _check_finish(config: "TrainConfig") -> None:
    if config.int8 is None and config.int8_lr is not None:
        raise UsageError("int8_lr goes with int8, the epochs of the finish")
    if config.int8 is not None and config.precision != "32-true":
        raise UsageError(f"int8 needs precision 32-true: {config.precision} rounds more than int8 files do")


def _check_device(config: "TrainConfig") -> None:
    if not config.cuda_graphs:
        return
    decides = {
        f"method '{config.method}'": not config.method_row.alike,
        "kd_mixup": bool(config.kd_mixup),
        "plt_loss": config.plt_loss is not None,
        "rise 'cheapest-first'": config.rise == "cheapest-first",
    }
    if said := next((name for name, there in decides.items() if there), None):
        raise UsageError(f"cuda_graphs records one step for all, and {said} decides anew from step to step")
    for name, there in (("compile", config.compile), ("devices", config.devices > 1), ("int8", config.int8)):
        if there:
            raise UsageError(f"cuda_graphs and {name} do not go together: choose one of them")


def _check_widths(config: "TrainConfig") -> None:
    for name in ("factors", "inner"):
        check_factors(name, getattr(config, name))
    for name, given in (("collapse", config.collapse), ("plt_loss", config.plt_loss is not None)):
        if given:
            raise UsageError(f"{name} goes with one width alone, not with method '{config.method}'")
    if config.rise == "cheapest-first":
        raise UsageError(f"rise='cheapest-first' goes with one width alone, not with method '{config.method}'")


def _check_sizes(config: "TrainConfig") -> None:
    sizes, listed = config.sizes, ", ".join(map(str, config.sizes))
    if not sizes:
        return
    if any(not isinstance(size, int) or size < 1 for size in sizes):
        raise UsageError(f"sizes must be whole numbers of pixels, > 0, not {listed}")
    if len(sizes) < 2:
        raise UsageError(f"sizes must be two or more, not {listed} alone: for one there is input_size")
    if len(sizes) > config.epochs:
        raise UsageError(f"sizes {listed} are more than the epochs, {config.epochs}")
    if config.input_size not in (None, sizes[-1]):
        raise UsageError(f"sizes end with {sizes[-1]}, and input_size is {config.input_size}: leave one of the two out")


def _check_rate(config: "TrainConfig") -> None:
    if config.warmup >= config.epochs:
        raise UsageError(f"warmup_epochs must be less than epochs {config.epochs}, not {config.warmup_epochs}")
    points = (config.warmup, *config.restarts, config.epochs)
    if config.restarts and any(a >= b for a, b in pairwise(points)):
        raise UsageError(
            f"restarts must rise, between the warm-up of {config.warmup:g} epochs and epochs {config.epochs}, "
            f"not {', '.join(map(str, config.restarts))}"
        )
    if config.keep_anchors > config.epochs:
        raise UsageError(f"keep_anchors {config.keep_anchors} is more than epochs {config.epochs}")
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
    if tune == decay and (config.rise != "together" or config.plt_loss is not None):
        name = "plt_loss" if config.rise == "together" else f"rise='{config.rise}'"
        raise UsageError(f"{name} needs plt_epochs: with 0 all activations are removed at once")
    if config.collapse and config.contract_at == "decay":
        raise UsageError("collapse trains the giant in weight space, contract_at='decay' has none left: choose one")


def _check_teacher(config: "TrainConfig") -> None:
    own = " or ".join(row.name for row in METHODS.values() if row.distils and row.expands and not row.mimics)
    if config.distils and not (config.is_taught and (config.teacher or "stored_labels" in config.method_row.takes)):
        raise UsageError(f"method '{config.method}' needs a teacher: a file or a MODEL; {own} can have '{SELF}'")
    if config.teacher is not None and not config.distils:
        known = " or ".join(row.name for row in METHODS.values() if row.distils)
        raise UsageError(f"method '{config.method}' has no teacher: choose {known}")
    if config.teacher == SELF and not config.expands:
        raise UsageError(f"teacher '{SELF}' is the giant before its slopes rise: it needs method {own}")
    for name in ("teacher_model", "teacher_key"):
        if getattr(config, name) is not None and config.teacher in (None, SELF):
            raise UsageError(f"{name} goes with a file of weights as teacher")
    if config.teacher != SELF and SELF in config.teachers:
        raise UsageError(f"teacher '{SELF}' cannot be one of several: no giant is there before its own training")
    if config.distils:
        _check_taught(config)


def _check_taught(config: "TrainConfig") -> None:
    """What shows the teacher something else, or is learnt from it alone."""
    shown = {
        "kd_mixup": bool(config.kd_mixup),
        "other_view": not config.same_view,
        "stored_labels": config.stored_labels,
    }
    given = [name for name, value in shown.items() if value]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} both say what the teacher sees: choose one")
    alone = config.labels == "none"
    if config.teacher == SELF and (given or alone):
        raise UsageError(f"{'labels none' if alone else given[0]} needs a teacher from the start, not '{SELF}'")
    if given and config.method_row.name == ROUTE:
        raise UsageError(
            f"{given[0]} goes with one teacher for the whole run, not with the anchors of method '{ROUTE}'"
        )
    if config.kd_mixup and not alone:
        raise UsageError("kd_mixup leaves mixtures no label but the teacher's answer: add labels 'none'")
    if config.augment in ("mixup", "cutmix") and (config.kd_mixup or not config.same_view):
        raise UsageError(
            f"augment '{config.augment}' mixes images with each other: other_view and kd_mixup go with another one"
        )
    if config.stored_labels is not None and config.sizes:
        raise UsageError(
            "stored_labels are answers to images of one size: leave sizes out, or ask the teacher in each run"
        )
    for name in ("stored_views", "stored_top"):
        if config.stored_labels is None and getattr(config, name) is not None:
            raise UsageError(f"{name} goes with stored_labels, a folder")


def _check_unlabeled(config: "TrainConfig") -> None:
    if config.method is not None and not config.mimics:
        _refuse_unlabeled(config)
    if not config.mimics:
        return
    if config.unlabeled is None:
        raise UsageError(f"method '{config.method}' needs images without labels: unlabeled, such as imagefolder:DIR")
    if config.teacher == SELF:
        raise UsageError(f"method '{config.method}' mimics a giant that has learnt: teacher must be a file or a MODEL")
    if config.unlabeled == REST and config.train_images is None:
        raise UsageError(f"unlabeled '{REST}' is what train_images leaves out, and there is no train_images")
    if config.augment in ("mixup", "cutmix") or config.sizes or not config.same_view:
        what = "sizes" if config.sizes else "other_view" if not config.same_view else f"augment '{config.augment}'"
        raise UsageError(f"{what} would change the labelled images alone: it does not go with method '{config.method}'")
    if config.adversarial and config.expands:
        raise UsageError(f"adversarial goes with a network that stays the same, not with method '{config.method}'")
    if config.feature is not None and not config.adversarial:
        raise UsageError("feature is what adversarial aligns, and that is 0")
    if config.unlabeled_batch is not None and config.unlabeled_batch % config.accumulate:
        raise UsageError(
            f"unlabeled_batch {config.unlabeled_batch} must be a multiple of accumulate {config.accumulate}"
        )


def _refuse_unlabeled(config: "TrainConfig") -> None:
    """Check that nothing is given which the method would not look at."""
    for field in dataclasses.fields(UnlabeledOptions):
        if getattr(config, field.name) != field.default:
            known = " or ".join(row.name for row in METHODS.values() if row.mimics)
            raise UsageError(f"{field.name} goes with method {known}, not with '{config.method}'")


def check_boxes(config: "TrainConfig", data: str) -> None:
    """Check that nothing is asked for which goes with one class an image, where the labels of ``data`` are boxes.

    Raises:
        UsageError: with what is.
    """
    asked = {
        f"method '{config.method_row.name}'": config.method_row.classes_only,
        "stored_labels": config.stored_labels is not None,
        "kd_mixup": config.kd_mixup > 0,
        "other_view": not config.same_view,
        "more than one teacher": len(config.teachers) > 1,
        f"augment '{config.augment}'": config.augment != type(config).augment,
        "sizes": bool(config.sizes),
        f"rise '{config.rise}'": config.rise == "cheapest-first",
        "plt_loss": config.plt_loss is not None,
    }
    if given := next((name for name, is_asked in asked.items() if is_asked), None):
        raise UsageError(f"{given} goes with one class an image, and the labels of {data} are boxes")


def check_named(config: "TrainConfig", row: MethodRow) -> None:
    """Check that nothing is lost which is meant for one method, where ``row`` is taken because none is named.

    Raises:
        UsageError: if an option is not at its default and goes with other methods only.
    """
    for name, takers in _unused(config, row).items():
        raise UsageError(f"{name} goes with method {takers}, not with {row.name}: name the method")


def without_unused(config: "TrainConfig") -> tuple["TrainConfig", str]:
    """``config`` with what means nothing to the method, which is named, at its defaults; and the names of that.

    A control may be told what the run beside it is told, and is none if that changes it.
    """
    unused = _unused(config, config.method_row)
    defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(config) if f.name in unused}
    told = [flag_of(type(config), name).removeprefix("--").replace("-", "_") for name in unused]
    return dataclasses.replace(config, **defaults), ", ".join(told)


def _unused(config: "TrainConfig", row: MethodRow) -> dict[str, str]:
    """Options that are not at their defaults and go with other methods than ``row``, and with which."""
    given = {field.name for field in dataclasses.fields(config) if getattr(config, field.name) != field.default}
    return {
        name: " or ".join(takers)
        for name in sorted(given - set(row.takes))
        if (takers := [one.name for one in METHODS.values() if name in one.takes])
    }


def check_wide(config: "TrainConfig", wide: bool) -> None:
    """Check that a giant in width is trained by a method that trains its widths.

    Raises:
        UsageError: if not.
    """
    if wide and not config.widens:
        known = " or ".join(row.name for row in METHODS.values() if row.widens)
        raise UsageError(f"method '{config.method}' does not train giants in width, as this network is: choose {known}")
