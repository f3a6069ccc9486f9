import json
from typing import Any

import pytest

from nbcompile import UsageError
from nbcompile.training import TrainConfig
from nbcompile.training.config import METHOD_NAMES
from nbcompile.training.methods import METHODS


def test_json_form_is_a_round_trip() -> None:
    config = TrainConfig(where=("features.*", "head"), input_size=16, plt_epochs=3)
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_every_method_is_in_the_table() -> None:
    assert tuple(METHODS) == METHOD_NAMES


@pytest.mark.parametrize(
    ("options", "ramp"),
    [
        ({"epochs": 60}, (30, 6)),
        ({"epochs": 310, "giant_epochs": 160}, (160, 30)),
        ({"epochs": 10, "giant_epochs": 0}, (0, 2)),
        ({"epochs": 3, "warmup_epochs": 0}, (1, 1)),
        ({"epochs": 10, "giant_epochs": 4, "plt_epochs": 6}, (4, 6)),
    ],
)
def test_ramp(options: dict[str, Any], ramp: tuple[int, int]) -> None:
    assert TrainConfig(**options).ramp == ramp


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "magic"}, "method must be one of vanilla, netbooster, not 'magic'"),
        ({"precision": "8"}, "precision must be one of 32-true, bf16-mixed, not '8'"),
        ({"epochs": 0}, "epochs must be > 0, not 0"),
        ({"batch_size": -1}, "batch_size must be > 0, not -1"),
        ({"lr": float("nan")}, "lr must be > 0, not nan"),
        ({"input_size": 0}, "input_size must be > 0, not 0"),
        ({"plt_epochs": 0}, "plt_epochs must be > 0, not 0"),
        ({"weight_decay": -0.1}, "weight_decay must be >= 0, not -0.1"),
        ({"giant_epochs": -1}, "giant_epochs must be >= 0, not -1"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), not 1.0"),
        ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\), not 1.5"),
        ({"epochs": 2, "warmup_epochs": 2}, "warmup_epochs must be less than epochs 2, not 2"),
        (
            {"epochs": 10, "giant_epochs": 8, "plt_epochs": 3},
            "giant_epochs 8 \\+ plt_epochs 3 is more than epochs 10: the slopes would not reach 1",
        ),
    ],
)
def test_refuses(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=rf"^{sentence}$"):
        TrainConfig(**options)


def test_refuses_an_unknown_option() -> None:
    with pytest.raises(UsageError, match=r"no training option is called learning_rate; there are accelerator, .* lr, "):
        TrainConfig.from_json({"learning_rate": 0.1})
