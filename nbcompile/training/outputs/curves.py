"""The curves of one run as a picture."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from nbcompile.core.files import atomic
from nbcompile.training.outputs.records import Epoch

_ACCURACIES = {"val_accuracy": ("validation", "-", 100), "train_accuracy": ("training", ":", 100)}
_PANELS = {
    "training loss": {"loss": ("loss", "-", 1)},
    "learning rate": {"lr": ("lr", "-", 1)},
    "slope": {"slope": ("slope", "-", 1)},
}
"""Per panel but the first: fields of an epoch, each with its name, line style and factor."""


def save_curves(history: Sequence[Epoch], path: Path, metric: str = "accuracy") -> None:
    """Accuracies, loss, learning rate and, where there are any, slopes over the epochs, with the phases' names.

    Args:
        history: of the run.
        path: of the picture.
        metric: what accuracies are, as of :class:`~nbcompile.training.outputs.records.TrainResult`.
    """
    from matplotlib.figure import Figure

    top = {"accuracy, %": _ACCURACIES}
    if metric != "accuracy":
        top = {f"{metric}, %": {**_ACCURACIES, "train_accuracy": ("training: found", ":", 100)}}
    panels = {**top, **_PANELS}
    if all(epoch.slope is None for epoch in history):
        del panels["slope"]
    heights = [2.2 if label in top else 1 for label in panels]
    figure = Figure(figsize=(8, 1.6 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, gridspec_kw={"height_ratios": heights})
    for one, (label, series) in zip(axes, panels.items(), strict=True):
        for field, (name, line, factor) in series.items():
            values = [getattr(epoch, field) for epoch in history]
            shown = [float("nan") if value is None else factor * value for value in values]
            marker = "." if len(history) == 1 else ""
            one.plot([epoch.epoch for epoch in history], shown, line, label=name, marker=marker)
        one.set_ylabel(label)
        one.grid(alpha=0.3)
    axes[0].legend(loc="lower right")
    axes[-1].set_xlabel("epoch")
    axes[-1].set_xlim(history[0].epoch - 1, history[-1].epoch)
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    for index, (phase, first, last) in enumerate(_phases(history)):
        if index % 2:
            for one in axes:
                one.axvspan(first, last, color="0.93", zorder=0)
        axes[0].annotate(
            phase, ((first + last) / 2, 1), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
            ha="center", fontsize="small",
        )  # fmt: skip
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _phases(history: Sequence[Epoch]) -> list[tuple[str, float, float]]:
    """Name, beginning and end of each phase, in epochs; an epoch ends at its number."""
    spans = []
    for name, epochs in groupby(history, lambda epoch: epoch.phase):
        numbers = [epoch.epoch for epoch in epochs]
        spans.append((name, numbers[0] - 1.0, float(numbers[-1])))
    return spans
