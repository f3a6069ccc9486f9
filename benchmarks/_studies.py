"""What ``ablate.py`` compares: networks that under-fit, forms of NetBooster, and the paper's ablations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from _small_residual import ResidualNet
from torch import nn

from nbcompile.training.methods import METHODS, SELF
from nbcompile.zoo import BlockRow, InvertedResidualNet

Options = Mapping[str, Any]


def _inverted_residuals(
    stem: int, rows: tuple[tuple[int, int, int, int], ...], head: int, classes: int = 10
) -> InvertedResidualNet:
    """Of rows ``(channels, expansion, blocks, stride)``, for 32-pixel images."""
    stages = [BlockRow(c, (t,) * n, (3,) * n, s) for c, t, n, s in rows]
    return InvertedResidualNet(stem, stages, head, num_classes=classes, in_channels=3)


NETWORKS: dict[str, Callable[[], InvertedResidualNet]] = {
    "2k": lambda: _inverted_residuals(8, ((8, 1, 1, 2), (12, 3, 1, 2)), 24),
    "5k": lambda: _inverted_residuals(8, ((8, 1, 1, 1), (8, 4, 1, 2), (12, 4, 2, 2)), 40),
    "8k": lambda: _inverted_residuals(8, ((8, 1, 1, 1), (8, 4, 2, 2), (12, 4, 3, 2)), 48),
    "17k": lambda: _inverted_residuals(8, ((8, 1, 1, 1), (12, 4, 2, 2), (20, 4, 3, 2)), 80),
    "60k": lambda: _inverted_residuals(12, ((8, 1, 1, 1), (16, 4, 2, 1), (24, 4, 3, 2), (40, 4, 3, 2)), 160),
    "250k": lambda: _inverted_residuals(16, ((16, 1, 1, 1), (24, 6, 3, 1), (40, 6, 3, 2), (80, 6, 3, 2)), 320),
}
"""By their parameters, about."""

TINY_IMAGENET: dict[str, Callable[[], nn.Module]] = {
    "mobilenet-47k": lambda: _inverted_residuals(8, ((8, 1, 1, 1), (16, 4, 2, 2), (24, 4, 3, 2)), 120, 200),
    "residual-26k": lambda: ResidualNet((8, 16, 32), 200),
    "residual-91k": lambda: ResidualNet((16, 32, 64), 200),
    "residual-731k": lambda: ResidualNet((48, 96, 192), 200),
}
"""For 200 classes, likewise."""

RECIPE: Options = {"batch_size": 128, "lr": 0.4, "weight_decay": 1e-4, "label_smoothing": 0.0, "ema": 0.0}
"""Of every run; chosen in a short trial of the vanilla "17k", before any giant was trained; without an average."""


@dataclass(frozen=True)
class Setting:
    """One column of a study.

    Attributes:
        name: in words.
        options: fields of ``TrainConfig`` for a run of so many epochs.
    """

    name: str
    options: Callable[[int], Options]

    @property
    def taught(self) -> bool:
        """Whether it needs a foreign teacher."""
        options = self.options(10)
        return METHODS[options.get("method", "netbooster")].distils and "teacher" not in options


def _paper(epochs: int) -> Options:
    """Half of the run for the giant, then PLT and fine-tuning with a learning rate that starts again."""
    return {"giant_epochs": epochs // 2, "restarts": [epochs // 2]}


def _one_cosine(epochs: int) -> Options:
    """Half of the run for the giant; the learning rate falls over the whole."""
    return {"giant_epochs": epochs // 2}


def _giant(epochs: int) -> Options:
    """What there is to be inherited: ``expanded`` is the accuracy of a giant that has the whole budget."""
    return {"giant_epochs": epochs - 1, "plt_epochs": 1}


def _linear(epochs: int) -> Options:
    """No activations at all: what over-parameterised layers do to the optimiser."""
    return {"giant_epochs": 0, "plt_epochs": 0, "preserve": True}


def _late(epochs: int) -> Options:
    """Half of the run plainly; then expanded without a change of function, and linear again in the other half."""
    plain, rest = epochs // 2, epochs - epochs // 2
    return {
        "plain_epochs": plain, "preserve": True, "restarts": [plain],
        "giant_epochs": rest // 5, "plt_epochs": max(1, 2 * rest // 5),
    }  # fmt: skip


def _with(base: Callable[[int], Options], **more: Any) -> Callable[[int], Options]:
    return lambda epochs: {**base(epochs), **more}


_TAUGHT = {"method": "netbooster+kd", "teacher": SELF, "kd_weight": 0.5, "temperature": 2.0}

_KD: Options = {"method": "netbooster+kd", "kd_weight": 0.9, "temperature": 4.0}

STUDIES: dict[str, tuple[Setting, ...]] = {
    "forms": (
        Setting("paper", _paper),
        Setting("one cosine", _one_cosine),
        Setting("preserve", _with(_paper, preserve=True)),
        Setting("preserve, one cosine", _with(_one_cosine, preserve=True)),
        Setting("late", _late),
    ),
    "giant": (
        Setting("a giant to the last epoch but one", _giant),
        Setting("the same, preserve", _with(_giant, preserve=True)),
    ),
    "linear": (
        Setting("live norms", _linear),
        Setting("weight space", _with(_linear, collapse=True)),
        Setting("weight space, all sites", _with(_linear, collapse=True, where="all")),
        Setting("weight space, twice the rate", _with(_linear, collapse=True, inserted_lr=2.0)),
    ),
    "late": (
        Setting("late", _late),
        Setting("own teacher", _with(_late, **_TAUGHT)),
        Setting("weight space", _with(_late, collapse=True)),
    ),
    "teacher": (Setting("paper", _paper), Setting("own teacher", _with(_paper, **_TAUGHT))),
    "contract": (
        Setting("at the end", _paper),
        Setting("at the end of the decay", _with(_paper, contract_at="decay")),
        Setting("weight space", _with(_paper, collapse=True)),
    ),
    "shape": (Setting("linear", _paper), Setting("cosine", _with(_paper, decay="cosine"))),
    "basic": (
        Setting("one cosine", _with(_one_cosine, block="basic")),
        Setting("paper", _with(_paper, block="basic")),
        Setting("one cosine, decay late", lambda e: {"giant_epochs": 3 * e // 4, "block": "basic"}),
    ),
    "inserted": tuple(
        Setting(f"rate × {rate}, decay × {decay}", _with(_paper, inserted_lr=rate, inserted_weight_decay=decay))
        for rate, decay in ((1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.0))
    ),
    "table 2: distillation": (
        Setting("KD", lambda e: {**_KD, "method": "kd", "compile": False}),
        Setting("one cosine, KD", _with(_one_cosine, **_KD)),
        Setting("weight space, KD", _with(_linear, collapse=True, **_KD)),
    ),
    "table 4: block": tuple(
        Setting(block, _with(_paper, block=block)) for block in ("inverted-residual", "basic", "bottleneck")
    ),
    "table 5: where": tuple(
        Setting(where, _with(_paper, where=where)) for where in ("uniform:0.5", "first:3", "middle:3", "last:3")
    ),
    "table 6: ratio": tuple(Setting(str(ratio), _with(_paper, ratio=ratio)) for ratio in (6, 2, 4, 8)),
    "table 7: decay": tuple(
        Setting(
            f"{percent} %",
            lambda e, percent=percent: {**_paper(e), "plt_epochs": round(percent / 100 * (e - e // 2))},
        )
        for percent in (20, 0, 40, 60)
    ),
    "figure 3: sites": tuple(
        Setting(where, _with(_paper, where=where)) for where in ("uniform:0.5", "uniform:0.25", "uniform:0.75", "all")
    ),
}
"""The paper's ablations by their number in arXiv:2306.13586, and ours; what others are compared with comes first."""
