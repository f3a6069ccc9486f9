import json
from typing import Any

import pytest

from nbcompile import UsageError
from nbcompile.training import TrainConfig
from nbcompile.training.methods import METHODS
from nbcompile.training.options.rules import without_unused


def test_json_form_is_a_round_trip() -> None:
    config = TrainConfig(method="netbooster", where=("features.*", "head"), input_size=16, plt_epochs=3)
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_method_that_is_not_named_is_the_recommended_one() -> None:
    """docs/accuracy.md: nothing is ahead of plain training at the same compute; at the same epochs a teacher is."""
    assert TrainConfig().for_network(giant=False).method == TrainConfig().method_row.name == "vanilla"
    taught = TrainConfig(teacher="teacher.pt", temperature=2.0)
    assert taught.for_network(giant=False).method == taught.method_row.name == "kd"
    assert TrainConfig().for_network(giant=True).method == "netbooster"
    assert taught.for_network(giant=True).method == "netbooster+kd"
    assert TrainConfig(giant_epochs=0).for_network(giant=True).method == "netbooster"
    for name in ("vanilla", "netbooster"):
        assert TrainConfig(method=name).for_network(giant=name == "vanilla").method == name


@pytest.mark.parametrize(
    ("options", "phases"),
    [
        ({"epochs": 60}, (0, 30, 36)),
        ({"epochs": 310, "giant_epochs": 160}, (0, 160, 190)),
        ({"epochs": 10, "giant_epochs": 0}, (0, 0, 2)),
        ({"epochs": 3, "warmup_epochs": 0}, (0, 1, 2)),
        ({"epochs": 10, "giant_epochs": 4, "plt_epochs": 6}, (0, 4, 10)),
        ({"epochs": 10, "giant_epochs": 4, "plt_epochs": 0}, (0, 4, 4)),
        ({"epochs": 50, "plain_epochs": 25}, (25, 37, 40)),
        ({"epochs": 50, "plain_epochs": 25, "giant_epochs": 0, "plt_epochs": 25}, (25, 25, 50)),
    ],
)
def test_phases(options: dict[str, Any], phases: tuple[int, int, int]) -> None:
    assert TrainConfig(method="netbooster", **options).phases == phases


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "magic"}, "method must be one of vanilla, netbooster, kd, netbooster\\+kd, .*, not 'magic'"),
        ({"precision": "8"}, "precision must be one of 32-true, bf16-mixed, not '8'"),
        ({"epochs": 0}, "epochs must be > 0, not 0"),
        ({"batch_size": -1}, "batch_size must be > 0, not -1"),
        ({"lr": float("nan")}, "lr must be > 0, not nan"),
        ({"int8": 0}, "int8 must be > 0, not 0"),
        ({"int8": -1}, "int8 must be > 0, not -1"),
        ({"int8_lr": 0.1}, "int8_lr goes with int8, the epochs of the finish"),
        ({"int8": 1, "precision": "bf16-mixed"}, "int8 needs precision 32-true: bf16-mixed rounds more than .*"),
        ({"input_size": 0}, "input_size must be > 0, not 0"),
        ({"plt_epochs": -1}, "plt_epochs must be >= 0, not -1"),
        ({"decay": "sudden"}, "decay must be one of linear, cosine, not 'sudden'"),
        ({"rise": "sideways"}, "rise must be one of together, from-input, cheapest-first, not 'sideways'"),
        ({"plt_loss": 0.0}, "plt_loss must be > 0, not 0.0"),
        (
            {"method": "netbooster", "plt_epochs": 0, "rise": "from-input"},
            "rise='from-input' needs plt_epochs: with 0 all activations are removed at once",
        ),
        (
            {"method": "netbooster", "plt_epochs": 0, "plt_loss": 0.1},
            "plt_loss needs plt_epochs: with 0 all activations are removed at once",
        ),
        (
            {"method": "netbooster+netaug", "plt_loss": 0.1},
            r"plt_loss goes with one width alone, not with method 'netbooster\+netaug'",
        ),
        (
            {"method": "netbooster+netaug", "rise": "cheapest-first"},
            r"rise='cheapest-first' goes with one width alone, not with method 'netbooster\+netaug'",
        ),
        ({"contract_at": "noon"}, "contract_at must be one of end, decay, not 'noon'"),
        ({"temperature": 0}, "temperature must be > 0, not 0"),
        ({"kd_weight": 1.5}, r"kd_weight must be in \[0, 1\], not 1.5"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\), not 1.0"),
        ({"batch_size": 32, "accumulate": 3}, "batch_size 32 must be a multiple of accumulate 3"),
        (
            {"epochs": 10, "restarts": (5, 5)},
            "restarts must rise, between the warm-up of 2 epochs and epochs 10, not 5, 5",
        ),
        ({"epochs": 10, "restarts": (2,)}, "restarts must rise, between the warm-up of 2 epochs and epochs 10, not 2"),
        ({"epochs": 10, "restarts": (10,)}, "restarts must rise, .*, not 10"),
        (
            {"method": "netbooster", "epochs": 10, "plain_epochs": 6, "giant_epochs": 4, "plt_epochs": 0},
            "plain_epochs 6 \\+ giant_epochs 4 \\+ plt_epochs 0 do not fit into epochs 10: "
            "the slopes would not reach 1",
        ),
        (
            {"method": "netbooster", "giant_epochs": 0, "plt_epochs": 0, "contract_at": "decay"},
            "contract_at='decay' needs giant_epochs or plt_epochs: nothing would be trained as a giant",
        ),
        (
            {"method": "netbooster", "collapse": True, "contract_at": "decay"},
            "collapse trains the giant in weight space, contract_at='decay' has none left: choose one",
        ),
        ({"method": "kd"}, "method 'kd' needs a teacher: a file or a MODEL; netbooster\\+kd can have 'self'"),
        (
            {"method": "netbooster", "teacher": "self"},
            "method 'netbooster' has no teacher: choose kd or netbooster\\+kd or netaug\\+kd or mimic or .*",
        ),
        (
            {"method": "kd", "teacher": "self"},
            "teacher 'self' is the giant before its slopes rise: it needs method netbooster\\+kd",
        ),
        (
            {"method": "netbooster+kd", "teacher": "self", "teacher_model": "timm:resnet18"},
            "teacher_model goes with a file of weights as teacher",
        ),
        ({"teacher_model": "timm:resnet18"}, "teacher_model goes with a file of weights as teacher"),
        ({"teacher_key": "ema"}, "teacher_key goes with a file of weights as teacher"),
        ({"teacher": "self"}, "teacher 'self' is the giant before its slopes rise: it needs method netbooster\\+kd"),
        ({"weight_decay": -0.1}, "weight_decay must be >= 0, not -0.1"),
        ({"giant_epochs": -1}, "giant_epochs must be >= 0, not -1"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), not 1.0"),
        ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\), not 1.5"),
        ({"epochs": 2, "warmup_epochs": 2}, "warmup_epochs must be less than epochs 2, not 2"),
        (
            {"method": "netbooster", "epochs": 10, "giant_epochs": 8, "plt_epochs": 3},
            "giant_epochs 8 \\+ plt_epochs 3 do not fit into epochs 10: the slopes would not reach 1",
        ),
    ],
)
def test_refuses(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=rf"^{sentence}$"):
        TrainConfig(**options)


EXPANDING = r"netbooster or netbooster\+kd or netbooster\+mimic or rocket or netbooster\+netaug"
TAUGHT = r"kd or netbooster\+kd or netaug\+kd or netdistiller or grad-reparam\+kd or rco"


@pytest.mark.parametrize(
    ("options", "giant", "sentence"),
    [
        ({"ratio": 4}, False, rf"ratio goes with method {EXPANDING}, not with vanilla"),
        ({"kd_weight": 0.5}, False, rf"kd_weight goes with method {TAUGHT}, not with vanilla"),
        ({"kd_weight": 0.5}, True, rf"kd_weight goes with method {TAUGHT}, not with netbooster"),
        (
            {"teacher": "t.pt", "kd_weight": 0.5, "collapse": True},
            False,
            "collapse goes with method netbooster or netbooster\\+kd or netbooster\\+mimic, not with kd",
        ),
    ],
)
def test_what_goes_with_another_method_is_not_lost(
    options: dict[str, Any], giant: bool, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UsageError, match=rf"^{sentence}: name the method$"):
        TrainConfig(**options).for_network(giant=giant)
    named = TrainConfig(**options | {"method": "vanilla", "teacher": None})
    assert not caplog.messages
    assert named.for_network(giant=giant).method == "vanilla"
    plain, unused = without_unused(named)
    assert unused == ", ".join(sorted(options.keys() - {"teacher"}))
    assert plain == TrainConfig(method="vanilla"), "what is left aside is asked all the same"


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_takes_is_not_called_unused(name: str) -> None:
    """Nor what goes with all of them."""
    teacher = {"teacher": "t.pt"} if METHODS[name].distils else {}
    images = {"unlabeled": "imagefolder:many"} if METHODS[name].mimics else {}
    config = TrainConfig(method=name, lr=0.3, epochs=50, **teacher, **images)
    assert without_unused(config) == (config, "")


def test_what_is_left_aside_is_called_as_on_the_command_line() -> None:
    plain, unused = without_unused(TrainConfig(method="vanilla", same_view=False, stored_labels="d", stored_views=3))
    assert (plain, unused) == (TrainConfig(method="vanilla"), "other_view, stored_labels, stored_views")


def test_refuses_an_unknown_option() -> None:
    with pytest.raises(UsageError, match=r"no training option is called learning_rate; there are accelerator, .* lr, "):
        TrainConfig.from_json({"learning_rate": 0.1})
