"""The table of training methods.

A new method is one file here, with a class on `nbcompile.training.methods.base.Method`, and one row. The rows import no
torch: ``--help`` reads them, and what a run is told is checked against them.
"""

from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from nbcompile.training.methods.base import Method
    from nbcompile.training.options.config import TrainConfig

SELF = "self"
"""The teacher of a giant that is its own."""

ROUTE = "rco"
"""The method whose teachers are anchors, one after the other; all others average several."""


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """What a training method is.

    Attributes:
        name: what ``--method`` is given.
        help: what it does, in a few words.
        classes: where it is written, as ``module:Class``; of several, each changes what those behind it do.
        measured: where docs/accuracy.md has it, in points of accuracy over plain training.
        expands: whether it trains a giant; a network that is none yet is expanded.
        widens: whether it trains a giant in width; a network that is none yet is widened.
        distils: whether the network also learns what a teacher answers; then a run needs ``teacher``.
        mimics: whether it does so on images without labels, too; then a run needs ``unlabeled``.
        alike: whether the steps of a phase are one computation, of which Python decides nothing, so that one of them
            can be recorded.
        classes_only: whether it goes with one class an image, and not with boxes.
        takes: fields of ``TrainConfig`` that mean nothing to other methods.
    """

    name: str
    help: str
    classes: tuple[str, ...]
    measured: str = "not measured yet"
    expands: bool = False
    widens: bool = False
    distils: bool = False
    mimics: bool = False
    alike: bool = False
    classes_only: bool = False
    takes: tuple[str, ...] = ()

    def start(self, config: "TrainConfig", steps_per_epoch: int, teacher: "nn.Module | None" = None) -> "Method":
        """The method at the beginning of a run; see `nbcompile.training.methods.base.Method`."""
        places = (place.partition(":") for place in self.classes)
        bases = tuple(getattr(import_module(module), name) for module, _, name in places)
        made: Method = type(self.name, bases, {})(config, steps_per_epoch, teacher)
        return made


_TEACHER = ("teacher", "teacher_model", "teacher_key", "temperature")
_TAUGHT = (*_TEACHER, "kd_weight", "labels")
_SHOWN = ("kd_mixup", "same_view", "stored_labels", "stored_views", "stored_top")


def taught(row: MethodRow, name: str, measured: str) -> MethodRow:
    """The method of ``row`` with a teacher."""
    return replace(
        row,
        name=name,
        help=f"{row.name} with a teacher",
        classes=("nbcompile.training.methods.distillation:Distilled", *row.classes),
        measured=measured,
        distils=True,
        takes=(*row.takes, *_TAUGHT, *_SHOWN),
    )


def mimicking(row: MethodRow, name: str, measured: str, *more: str) -> MethodRow:
    """The method of ``row`` with a teacher and images without labels; ``more`` are fields that it takes besides."""
    return replace(
        row,
        name=name,
        help=f"{row.name} with a teacher, and images without labels",
        classes=("nbcompile.training.methods.mimicry:Mimic", *row.classes),
        measured=measured,
        distils=True,
        mimics=True,
        alike=False,
        classes_only=True,
        takes=(*row.takes, *_TEACHER, "unlabeled", "unlabeled_batch", "unlabeled_pass", "mimic_weight", *more),
    )


_VANILLA = MethodRow(
    name="vanilla",
    help="the network as it is",
    classes=("nbcompile.training.methods.base:Method",),
    measured="nothing is measurably ahead of it at the same compute",
    alike=True,
)
_NETBOOSTER = MethodRow(
    name="netbooster",
    help="expand, train, PLT, fine-tune, fuse",
    classes=("nbcompile.training.methods.netbooster:NetBooster",),
    measured="+0.1 to +0.4 points at the same epochs (10 classes), within the error but once, −0.51 ± 0.17 (200; "
    "+0.08 ± 0.50 with preserve); level or behind at the same compute",
    expands=True,
    alike=True,
    takes=(
        *("where", "block", "ratio", "preserve", "plain_epochs", "giant_epochs", "plt_epochs", "decay"),
        *("contract_at", "collapse", "inserted_lr", "inserted_weight_decay", "rise", "plt_loss"),
    ),
)
_WIDTH = ("factors", "inner")
_NETAUG = MethodRow(
    name="netaug",
    help="widen, train it and a wider one that is drawn",
    classes=("nbcompile.training.methods.netaug:NetAug",),
    widens=True,
    takes=(*_WIDTH, "wide_epochs", "sort_epochs"),
)
_NETDISTILLER = MethodRow(
    name="netdistiller",
    help="widen, let the widest teach the network",
    classes=("nbcompile.training.methods.netdistiller:NetDistiller",),
    widens=True,
    alike=True,
    takes=(*_WIDTH, "divergence", "surgery", "temperature", "kd_weight"),
)
_ROCKET = MethodRow(
    name="rocket",
    help="train a giant beside it, which shares its first layers",
    classes=("nbcompile.training.methods.rocket:Rocket",),
    measured="behind vanilla: −0.64 ± 0.21 points at the same epochs, of 200 classes; −2.24 ± 0.03 at the same compute",
    alike=True,
    takes=("where", "block", "ratio", "hint_weight"),
)
_GRAD_REPARAM = MethodRow(
    name="grad-reparam",
    help="let layers learn as sums of branches, at no cost",
    classes=("nbcompile.training.methods.grad_reparam:GradReparameterized",),
    measured="level with vanilla, at its cost: +0.30 ± 0.24 points, of 200 classes",
    alike=True,
    takes=("branches", "draw_branches"),
)
_SHORT = "points at the same epochs where training is short; behind at the same compute"

METHODS: dict[str, MethodRow] = {
    row.name: row
    for row in (
        _VANILLA,
        _NETBOOSTER,
        taught(_VANILLA, "kd", f"+1.73 ± 0.20 (10 classes, temperature 4), +1.91 ± 0.35 (200, temperature 1) {_SHORT}"),
        taught(
            _NETBOOSTER,
            "netbooster+kd",
            f"+1.48 ± 0.25 (10 classes, temperature 4), +0.62 ± 0.28 (200, temperature 1) {_SHORT}",
        ),
        _NETAUG,
        taught(_NETAUG, "netaug+kd", _NETAUG.measured),
        mimicking(
            _VANILLA,
            "mimic",
            "+4.31 ± 0.42 points over the labelled tenth alone, level with kd on it, which costs half (200 classes)",
            "adversarial",
            "feature",
        ),
        mimicking(_NETBOOSTER, "netbooster+mimic", "not measured yet"),
        _NETDISTILLER,
        _ROCKET,
        _GRAD_REPARAM,
        taught(_GRAD_REPARAM, "grad-reparam+kd", "not measured yet"),
        replace(
            taught(_VANILLA, ROUTE, "+2.42 ± 0.22 points at the same epochs (200 classes), level at the same compute"),
            help="vanilla with the networks of a teacher's route, one after the other",
            classes=("nbcompile.training.methods.rco:RouteDistilled", *_VANILLA.classes),
            classes_only=True,
            takes=_TAUGHT,
        ),
        MethodRow(
            name="tf-kd",
            help="labels softened by a temperature in a teacher's place",
            classes=("nbcompile.training.methods.tf_kd:TeacherFree",),
            measured="level with vanilla: −0.41 ± 0.36 points, of 200 classes; −9.66 ± 0.20 at weight 0.9",
            alike=True,
            classes_only=True,
            takes=("virtual_correct", "virtual_temperature", "virtual_weight"),
        ),
        replace(
            _NETBOOSTER,
            name="netbooster+netaug",
            help="netbooster, and the giant is widened, too",
            classes=(_NETAUG.classes[0], *_NETBOOSTER.classes),
            measured=_NETAUG.measured,
            widens=True,
            alike=False,
            takes=(*(name for name in _NETBOOSTER.takes if name not in ("collapse", "plt_loss")), *_NETAUG.takes),
        ),
    )
}
"""By name. What is recommended for a kind of run stands before others for it: see `default_method`."""


def default_method(*, giant: bool = False, wide: bool = False, teacher: bool = False) -> MethodRow:
    """What a run is that names no method: what docs/accuracy.md recommends.

    Args:
        giant: whether the network has expansion blocks already; it is then made linear, to be fused.
        wide: whether it is a giant in width already.
        teacher: whether there is one.
    """
    wanted = (giant, wide, teacher)
    fits = (row for row in METHODS.values() if (row.expands, row.widens, row.distils) == wanted)
    return next(fits, METHODS["netbooster+netaug"])


def method_help() -> str:
    """The table in a sentence, for ``--help``."""
    rows = ", ".join(f"{row.name} ({row.help})" for row in METHODS.values())
    teacher, giant = default_method(teacher=True).name, default_method(giant=True).name
    return f"{rows}; default: {default_method().name}, with a teacher {teacher}, for a giant {giant}"
