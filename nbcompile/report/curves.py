"""Training curves of several runs in one figure: accuracy, loss and slope over epochs, as inline SVG.

Matplotlib draws with stand-in colours, which are then replaced by the page's CSS variables: the figure follows
light and dark, and its text is text.
"""

import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nbcompile.core.errors import missing_extra
from nbcompile.report.data import TrainingRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _SOFT, _RULE, _SHADE = "#010201", "#010202", "#010203", "#010204"
_SERIES = tuple(f"#0102{number:02x}" for number in range(16, 22))
_VARIABLES = {_INK: "--ink", _SOFT: "--soft", _RULE: "--rule", _SHADE: "--shade"} | {
    colour: f"--series-{index}" for index, colour in enumerate(_SERIES, 1)
}


def draw_curves(runs: Sequence[TrainingRun]) -> str:
    """The curves of ``runs`` as one ``<svg>`` element; an empty string where no run has a history.

    Raises:
        UsageError: if matplotlib is not installed.
    """
    runs = [run for run in runs if run.history]
    if not runs:
        return ""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("train", "drawing training curves", "matplotlib") from error

    style = mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "nbcompile",
            "font.family": "DejaVu Sans",
            "font.size": 10,
            "text.parse_math": False,
        }
    )
    with style:
        has_slope = any(_series(run, "slope")[0] for run in runs)
        heights = [3, 2.4, 0.9] if has_slope else [3, 2.4]
        figure = Figure(figsize=(8.6, sum(heights) * 0.95), layout="constrained")
        axes: list[Axes] = list(figure.subplots(len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights}))
        metrics = ", ".join(dict.fromkeys(run.metric for run in runs))
        _curves(axes[0], runs, {"val_accuracy": "-", "train_accuracy": ":"}, f"{metrics}, %", scale=100.0)
        _curves(axes[1], runs, {"loss": "-"}, "training loss")
        if has_slope:
            _curves(axes[2], runs, {"slope": "-"}, "slope")
            axes[2].set_ylim(-0.08, 1.08)
            axes[2].set_yticks([0, 1])
        axes[-1].set_xlabel("epoch", color=_SOFT)
        _legend(axes[0])
        _phases(axes, runs)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue())


def _curves(axes: "Axes", runs: Sequence[TrainingRun], keys: dict[str, str], label: str, scale: float = 1.0) -> None:
    for index, run in enumerate(runs):
        colour = _SERIES[index % len(_SERIES)]
        for key, line in keys.items():
            epochs, values = _series(run, key)
            name = f"{run.label}, {'training' if key.startswith('train') else 'validation'}"
            width = 1.8 if line == "-" else 1.3
            axes.plot(epochs, [scale * v for v in values], line, color=colour, linewidth=width, label=name)
    axes.set_ylabel(label, color=_SOFT)
    axes.grid(axis="y", color=_RULE, linewidth=0.7)
    axes.tick_params(color=_RULE, labelcolor=_SOFT, length=3)
    axes.margins(x=0.01)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_RULE)


def _series(run: TrainingRun, key: str) -> tuple[list[float], list[float]]:
    """The epochs that have a finite ``key``, and its values."""
    points = [(epoch["epoch"], epoch.get(key)) for epoch in run.history]
    known = [(float(x), float(y)) for x, y in points if y is not None and math.isfinite(y)]
    return [x for x, _ in known], [y for _, y in known]


def _legend(axes: "Axes") -> None:
    handles = [line for line in axes.get_lines() if len(line.get_xdata())]  # type: ignore[arg-type]
    if handles:
        axes.legend(handles=handles, loc="lower right", frameon=False, labelcolor=_INK, fontsize=10)


def _phases(axes: Sequence["Axes"], runs: Sequence[TrainingRun]) -> None:
    """Shades every second phase of the first run that has several, and names them along the top."""
    spans = next((spans for run in runs if len(spans := _spans(run)) > 1), [])
    for index, (name, first, last) in enumerate(spans):
        if index % 2:
            for each in axes:
                each.axvspan(first, last, color=_SHADE, linewidth=0, zorder=0)
        axes[0].annotate(
            name,
            ((first + last) / 2, 1.0),
            (0, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            color=_SOFT,
        )


def _spans(run: TrainingRun) -> list[tuple[str, float, float]]:
    """Phases of a run as (name, first epoch, last epoch), each starting where the one before ended."""
    spans: list[tuple[str, float, float]] = []
    end = min(float(epoch["epoch"]) for epoch in run.history)
    for epoch in run.history:
        name, number = str(epoch.get("phase") or ""), float(epoch["epoch"])
        if spans and spans[-1][0] == name:
            spans[-1] = (name, spans[-1][1], number)
        else:
            spans.append((name, end, number))
        end = number
    return spans


def _inline(document: str) -> str:
    """A stand-alone SVG file as an element of an HTML page: no namespaces, metadata or style sheet of its own."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--sans)", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return re.sub(r"^<svg", '<svg class="curves" role="img" aria-label="training curves"', svg)
