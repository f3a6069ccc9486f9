"""Whole tables: networks at their limit on one data set, and every method beside them, in the order in which they run.

A suite is a plan that is fixed before its first run: what it names is in this file, under version control.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from _studies import Options


@dataclass(frozen=True)
class Place:
    """What a row's options may depend on.

    Attributes:
        epochs: of the run.
        teacher: the run folder of the suite's teacher; with ``labels`` in the folder of all runs.
        labels: folder of stored labels.
    """

    epochs: int
    teacher: Path
    labels: Path


@dataclass(frozen=True)
class Row:
    """A method in the table.

    Attributes:
        name: in words.
        options: fields of ``TrainConfig``.
    """

    name: str
    options: Callable[[Place], Options]


@dataclass(frozen=True)
class Suite:
    """A plan.

    Attributes:
        size: side of the images, in pixels.
        networks: names of ``_studies.NETWORKS``, in order.
        teacher: another one, trained once by the same recipe.
        recipe: of all runs.
        epochs: of the shortest runs.
        doublings: how often the epochs are doubled at most.
        gain: points of accuracy; where doubling the epochs gives vanilla less, the network is at its limit, and the
            methods run for the epochs before; at most for half of the longest, lest none stand beside them that cost
            twice as much.
        seeds: of every row, paired.
        rows: methods, in order; the first is what others are compared with.
    """

    size: int
    networks: Sequence[str]
    teacher: str
    recipe: Options
    epochs: int
    doublings: int
    gain: float
    seeds: int
    rows: Sequence[Row]


def _giant(at: Place) -> Options:
    """The paper's phases, with a learning rate that starts again when the slopes begin to rise."""
    return {"method": "netbooster", "giant_epochs": at.epochs // 2, "restarts": [at.epochs // 2]}


def _taught(at: Place) -> Options:
    return {"method": "kd", "stored_labels": str(at.labels), "teacher": str(at.teacher / "trained.pt")}


SUITES = {
    "tiny-imagenet": Suite(
        size=32,
        networks=("residual-91k", "mobilenet-47k"),
        teacher="residual-731k",
        recipe={"batch_size": 256, "lr": 0.2, "weight_decay": 1e-4, "label_smoothing": 0.0, "channels_last": True},
        epochs=30,
        doublings=3,
        gain=0.5,
        seeds=3,
        rows=(
            Row("vanilla", lambda at: {"method": "vanilla"}),
            Row("KD, stored labels", _taught),
            Row("tf-KD", lambda at: {"method": "tf-kd"}),
            Row("tf-KD, weight 0.9", lambda at: {"method": "tf-kd", "virtual_weight": 0.9}),
            Row("RCO-KD", lambda at: {"method": "rco", "teacher": str(at.teacher)}),
            Row("RocketLaunch", lambda at: {"method": "rocket", "where": "last:3"}),
            Row("gradient re-parameterization", lambda at: {"method": "grad-reparam"}),
            Row("NetBooster, the paper's phases", _giant),
            Row("NetBooster, layers preserved", lambda at: {"method": "netbooster", "preserve": True}),
            Row("NetAug", lambda at: {"method": "netaug"}),
            Row("NetDistiller", lambda at: {"method": "netdistiller"}),
            Row("NetBooster + KD", lambda at: {**_taught(at), "method": "netbooster+kd"}),
            Row("NetAug + KD", lambda at: {**_taught(at), "method": "netaug+kd"}),
        ),
    ),
}
