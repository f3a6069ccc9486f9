"""Draws the pictures of docs/accuracy.md from the result files: ``python benchmarks/plots.py``.

Or how much of a giant's advantage is left while its slopes rise: ``python benchmarks/plots.py --survival FILE --out
FOLDER``, of a result file of survival.py.

Each SVG holds the numbers that it shows as JSON in its description. Files are the same to the byte wherever the same
matplotlib draws them; a test draws them anew and compares.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "img"

FIRST, SECOND, QUIET = "#00796b", "#c2410c", "#9ca3af"
STYLE = {
    "svg.hashsalt": "nbcompile",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "axes.axisbelow": True,
}

Point = tuple[float, float]
"""Mean and standard error."""


@dataclass(frozen=True)
class Row:
    """One setting of one result file.

    Attributes:
        label: as the picture calls it.
        file: ``ablate_NAME.json`` without the rest.
        study: in the file.
        setting: in the study.
    """

    label: str
    file: str
    study: str
    setting: str

    def read(self) -> dict[str, Any]:
        """What the file says."""
        studies = json.loads((RESULTS / f"ablate_{self.file}.json").read_text())["results"]["studies"]
        found: dict[str, Any] = next(one for one in studies[self.study] if one["setting"] == self.setting)
        return found

    def point(self, difference: str) -> Point | None:
        """One of the paired differences, in points of accuracy."""
        found = self.read().get(difference)
        return None if found is None else (round(found["mean"], 2), round(found["standard_error"], 2))


DISTILLATION = "table 2: distillation"
FORMS = (
    Row("16,610 · 20 epochs · kd", "distillation", DISTILLATION, "KD"),
    Row("16,610 · 20 · linear in weight space + kd", "distillation", DISTILLATION, "weight space, KD"),
    Row("16,610 · 20 · linear in weight space", "weight_space", "linear", "weight space"),
    Row("16,610 · 20 · expanded half-way", "late", "late", "late"),
    Row("16,610 · 20 · half-way, weight space", "late", "late", "weight space"),
    Row("16,610 · 20 · half-way, its own teacher", "late", "late", "own teacher"),
    Row("65,690 · 15 · netbooster", "60k", "forms", "one cosine"),
    Row("65,690 · 15 · linear in weight space", "60k", "linear", "weight space"),
    Row("8,130 · 60 · netbooster", "8k", "forms", "one cosine"),
    Row("1,802 · 100 · netbooster, basic blocks", "2k", "basic", "one cosine"),
    Row("1,802 · 100 · kd", "2k_distillation", DISTILLATION, "KD"),
)
BUDGETS = (
    Row("65,690 params", "60k", "forms", "one cosine"),
    Row("16,610 params", "late", "late", "late"),
    Row("8,130 params", "8k", "forms", "one cosine"),
    Row("1,802 params", "2k", "basic", "one cosine"),
)
ABLATIONS = (
    Row("Table 4 · basic", "table_4", "table 4: block", "basic"),
    Row("Table 4 · bottleneck", "table_4", "table 4: block", "bottleneck"),
    Row("Table 5 · first", "tables_5_6_7", "table 5: where", "first:3"),
    Row("Table 5 · middle", "tables_5_6_7", "table 5: where", "middle:3"),
    Row("Table 5 · last", "tables_5_6_7", "table 5: where", "last:3"),
    Row("Table 6 · ratio 2", "tables_5_6_7", "table 6: ratio", "2"),
    Row("Table 6 · ratio 4", "tables_5_6_7", "table 6: ratio", "4"),
    Row("Table 6 · ratio 8", "tables_5_6_7", "table 6: ratio", "8"),
    Row("Table 7 · at once", "tables_5_6_7", "table 7: decay", "0 %"),
    Row("Table 7 · decay of 40 %", "tables_5_6_7", "table 7: decay", "40 %"),
    Row("Table 7 · decay of 60 %", "tables_5_6_7", "table 7: decay", "60 %"),
    Row("Fig. 3 · a quarter", "figure_3", "figure 3: sites", "uniform:0.25"),
    Row("Fig. 3 · three quarters", "figure_3", "figure 3: sites", "uniform:0.75"),
    Row("Fig. 3 · all", "figure_3", "figure 3: sites", "all"),
)


@dataclass(frozen=True)
class Series:
    """Points of one colour; None where nothing was measured.

    Attributes:
        name: in the legend.
        colour: of the markers.
        marker: as matplotlib calls it.
        points: one for each label of the picture.
    """

    name: str
    colour: str
    marker: str
    points: tuple[Point | None, ...]


def differences(labels: Sequence[str], series: Sequence[Series], title: str) -> Figure:
    """Paired differences, one line each, ± one standard error."""
    figure = Figure(figsize=(7.4, 1.0 + 0.3 * len(labels)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="#374151", linewidth=1)
    for number, one in enumerate(series):
        at = [(i + 0.12 * (2 * number - len(series) + 1), *p) for i, p in enumerate(one.points) if p is not None]
        rows, means, errors = zip(*at, strict=True)
        axes.errorbar(means, rows, xerr=errors, fmt=one.marker, color=one.colour, markersize=5, label=one.name)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel(title)
    if len(series) > 1:
        axes.legend(loc="best", frameon=True)
    return figure


def forms() -> tuple[Figure, object]:
    """Every form that was compared with vanilla on several seeds."""
    labels = [row.label for row in FORMS]
    same = Series("same epochs and learning rates", FIRST, "o", tuple(r.point("over_same") for r in FORMS))
    compute = Series("same training compute", SECOND, "s", tuple(r.point("over_compute") for r in FORMS))
    figure = differences(labels, (same, compute), "accuracy over vanilla, points, ± one standard error")
    return figure, {"labels": labels, same.name: same.points, compute.name: compute.points}


def budgets() -> tuple[Figure, object]:
    """What vanilla makes of the compute that a giant takes, for four networks."""
    figure = Figure(figsize=(7.4, 4.4), layout="constrained")
    told = {}
    for axes, row in zip(figure.subplots(2, 2).flat, BUDGETS, strict=True):
        found = row.read()
        options = json.loads((RESULTS / f"ablate_{row.file}.json").read_text())["options"]
        short, long = int(options["epochs"]), int(found["epochs_compute"])
        vanilla = [(short, round(found["vanilla"]["mean"], 2)), (long, round(found["vanilla_compute"]["mean"], 2))]
        giant = (round(found.get("compute", long), 1), round(found["final"]["mean"], 2))
        told[row.label] = {"vanilla": vanilla, "netbooster": giant}
        _budget(axes, row.label, vanilla, giant)
    figure.supxlabel("training compute, in epochs of the network itself", fontsize=9)
    figure.supylabel("accuracy, %", fontsize=9)
    return figure, told


def _budget(axes: Axes, label: str, vanilla: Sequence[Point], giant: Point) -> None:
    axes.plot(*zip(*vanilla, strict=True), color=FIRST, marker="o", label="vanilla")
    axes.plot(*giant, color=SECOND, marker="s", linestyle="none", label="with a giant")
    axes.set_title(label, fontsize=9)
    low = min(giant[1], *(y for _, y in vanilla))
    high = max(giant[1], *(y for _, y in vanilla))
    middle = (low + high) / 2
    axes.set_ylim(middle - 3.5, middle + 3.5)  # the same scale in all
    axes.margins(x=0.15)
    axes.legend(loc="upper left", frameon=True)


def ablations() -> tuple[Figure, object]:
    """The paper's ablations: each setting against the one that the paper recommends."""
    labels = [row.label for row in ABLATIONS]
    over = Series("over the paper's choice", FIRST, "o", tuple(row.point("over_first") for row in ABLATIONS))
    figure = differences(labels, (over,), "accuracy over the paper's choice, points, ± one standard error")
    return figure, {"labels": labels, over.name: over.points}


def transfer() -> tuple[Figure, object]:
    """Accuracy on the target after a start on other classes, against the plain network in the same epochs."""
    found = json.loads((RESULTS / "transfer.json").read_text())["results"]["forms"]
    labels = [form["form"] for form in found if form["form"] != "plain"]
    points = tuple(
        (round(form["over"]["plain"]["mean"], 2), round(form["over"]["plain"]["standard_error"], 2))
        for form in found
        if form["form"] != "plain"
    )
    over = Series("over plain", FIRST, "o", points)
    figure = differences(labels, (over,), "accuracy on the target over the plain network, points, ± one standard error")
    return figure, {"labels": labels, over.name: points}


def survival(file: Path) -> tuple[Figure, object]:
    """Accuracy of giants over that of plain networks, epoch by epoch, above their slope; ``file`` is of survival.py."""
    found = json.loads(file.read_text())["results"]
    epochs, rising = found["epochs"], found["rising"]
    series = {
        name: [(round(one["mean"], 2), round(one["standard_error"] or 0.0, 2)) for one in found[name]]
        for name in ("validation", "training")
    }
    figure = Figure(figsize=(7.4, 4.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 1)})
    upper.axhline(0, color="#374151", linewidth=1)
    for (name, points), colour in zip(series.items(), (FIRST, QUIET), strict=True):
        means, errors = zip(*points, strict=True)
        upper.errorbar(epochs, means, yerr=errors, color=colour, marker=".", label=name)
    lower.plot(epochs, found["slope"], color=SECOND)
    for axes in (upper, lower):
        axes.axvspan(rising[0] - 1, rising[-1], color="#f3f4f6", zorder=0)
    upper.set_ylabel("accuracy over plain, points")
    lower.set_ylabel("slope")
    lower.set_xlabel("epoch")
    upper.legend(loc="best", frameon=True)
    return figure, {"epochs": epochs, **series, "slope": [round(x, 3) for x in found["slope"]], "rising": rising}


PICTURES: dict[str, Callable[[], tuple[Figure, object]]] = {
    "accuracy_forms": forms,
    "accuracy_budgets": budgets,
    "accuracy_ablations": ablations,
    "accuracy_transfer": transfer,
}


def draw(folder: Path, pictures: Mapping[str, Callable[[], tuple[Figure, object]]] = PICTURES) -> None:
    """Write every picture into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        with matplotlib.rc_context(STYLE):
            figure, told = picture()
            metadata = {"Date": None, "Description": json.dumps(told)}
            figure.savefig(folder / f"{name}.svg", metadata=metadata)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--out", type=Path, default=IMAGES, help="folder of the SVGs")
    arguments.add_argument("--survival", type=Path, metavar="FILE", help="a result file of survival.py")
    given = arguments.parse_args()
    if given.survival is None:
        draw(given.out)
    else:
        draw(given.out, {"survival": lambda: survival(given.survival)})
