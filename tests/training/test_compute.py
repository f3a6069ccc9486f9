"""What a run costs, against counts made by hand."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import nbcompile
from nbcompile.training import TrainConfig, train
from nbcompile.training.batch import Batch
from nbcompile.training.compute import LEARNING, MEASURED, TrainingCost, advice, training_cost
from nbcompile.training.methods import METHODS, default_method

X = torch.zeros(1, 1, 7, 5)
IMAGES = 100  # an epoch
PLAIN = 15 * 6 * 9 + 15 * 8 * 6 + 8 * 3  # 5 × 3 positions: 3×3 layer, 1×1 layer; the classifier
BLOCK = 15 * (6 * 12 + 12 * 1 + 12 * 8)  # in the place of the 1×1 layer: 6 → 12, depthwise, 12 → 8
GIANT = PLAIN - 15 * 8 * 6 + BLOCK
TEACHER = 35 * 3
PHASES: dict[str, Any] = {  # 2 epochs plainly, 3 as a giant, 4 of decay, 1 after it
    "method": "netbooster", "epochs": 10, "plain_epochs": 2, "giant_epochs": 3, "plt_epochs": 4,
    "where": ["3"], "ratio": 2, "warmup_epochs": 0,
}  # fmt: skip


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU6(),
        nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def teacher() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(35, 3))


@pytest.mark.parametrize(
    ("options", "plain", "giant", "asked"),
    [
        ({"method": "vanilla", "epochs": 7}, 7, 0, 0),
        ({"method": "kd", "epochs": 7, "teacher": "t.pt"}, 7, 0, 7 * TEACHER),
        (PHASES, 2, 8, 0),
        (PHASES | {"contract_at": "decay"}, 3, 7, 0),
        (PHASES | {"collapse": True}, 3, 7, 0),
        (PHASES | {"method": "netbooster+kd", "teacher": "t.pt"}, 2, 8, 10 * TEACHER),
        (PHASES | {"method": "netbooster+kd", "teacher": "self"}, 2, 8, 5 * GIANT),
        (PHASES | {"plain_epochs": 0, "giant_epochs": 0, "plt_epochs": 0, "collapse": True}, 10, 0, 0),
    ],
)
def test_counts_what_each_epoch_trains(options: dict[str, Any], plain: int, giant: int, asked: int) -> None:
    config, model = TrainConfig(**options), network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    foreign = teacher() if config.teacher == "t.pt" else None
    spent = training_cost(model, config, X, IMAGES, foreign)
    epoch = 3 * IMAGES * PLAIN
    assert (spent.network, spent.giant) == (plain * epoch, giant * 3 * IMAGES * GIANT)
    assert spent.teacher == IMAGES * asked
    assert (spent.plain_epoch, spent.epochs) == (epoch, config.epochs)
    assert spent.total == spent.network + spent.giant + spent.teacher
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "model changed"


def test_preserved_layers_are_paid_for_and_a_given_giant_knows_its_original() -> None:
    giant = nbcompile.expand(network(), X, where=["3"], ratio=2, preserve=True)
    spent = training_cost(giant, TrainConfig(method="netbooster", epochs=2), X, IMAGES)
    assert (spent.network, spent.giant) == (0, 2 * 3 * IMAGES * (PLAIN + BLOCK))
    assert spent.plain_epoch == 3 * IMAGES * PLAIN


def test_a_training_step_is_worth_three_forward_passes() -> None:
    """But for the gradient of the images, which nobody asks for."""
    method = METHODS["vanilla"].start(TrainConfig(method="vanilla"), 1)
    with FlopCounterMode(display=False) as counter:
        loss, _ = method.loss(network(), Batch(torch.randn(4, 1, 7, 5), torch.tensor([0, 1, 2, 0])))
        loss.backward()
    assert counter.get_total_flops() == 2 * 4 * (LEARNING * PLAIN - 15 * 6 * 9)


def test_in_words() -> None:
    taught = TrainingCost(network=2_000, giant=6_000, teacher=500, plain_epoch=1_000, epochs=4)
    assert str(taught) == (
        "8.5e+03 training MACs (giant 6e+03, network 2e+03, teacher 500), 2.12 × plain training of as many epochs"
    )
    assert taught.to_json() == {
        "network": 2_000, "giant": 6_000, "teacher": 500, "plain_epoch": 1_000, "epochs": 4, "total": 8_500,
        "over_plain": 2.125, "plain_epochs": 8, "budget": None, "dearest": 0,
    }  # fmt: skip
    plain = TrainingCost(network=4_000, giant=0, teacher=0, plain_epoch=1_000, epochs=4)
    assert str(plain) == "4e+03 training MACs, 1.00 × plain training of as many epochs"
    assert advice(METHODS["vanilla"], plain) == (
        "docs/accuracy.md, up to 90,680 parameters, recommends at this cost: vanilla, as here"
    )
    still_a_giant = TrainingCost(network=0, giant=9_000, teacher=0, plain_epoch=1_000, epochs=4)
    assert "recommends at this cost: vanilla for 9 epochs (vanilla: " in advice(METHODS["vanilla"], still_a_giant)
    assert advice(METHODS["kd"], taught) == (
        "docs/accuracy.md, up to 90,680 parameters, recommends at this cost: vanilla for 8 epochs "
        "(kd: +1.73 ± 0.20 (10 classes, temperature 4), +1.91 ± 0.35 (200, temperature 1) "
        "points at the same epochs where training is short; behind at the same compute)"
    )


def test_the_rows_say_what_the_measured_table_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "accuracy.md").read_text()
    assert f"{MEASURED:,}" in page
    for row in METHODS.values():
        for number in re.findall(r"\d+\.\d+(?: ± \d+\.\d+| to \+?\d+\.\d+)?", row.measured):
            assert number.replace("+", "") in page, row.name
    assert default_method().name == "vanilla"


def test_a_run_says_what_it_cost(net: nn.Module, tmp_path: Path) -> None:
    options: dict[str, Any] = {"where": ["3"], "ratio": 2, "epochs": 4, "giant_epochs": 1, "plt_epochs": 1}
    config = TrainConfig(
        method="netbooster", contract_at="decay", batch_size=256, warmup_epochs=1, accelerator="cpu", **options
    )
    result = train(net, config, tmp_path / "trained.pt")
    plain = 16 * 8 * 9 + 16 * 16 * 8 + 64 * 10
    giant = plain - 16 * 16 * 8 + 16 * (8 * 16 + 16 + 16 * 16)
    images = 5 * 256  # whole batches of the 1,437 digits
    assert (result.cost.network, result.cost.giant) == (2 * 3 * images * plain, 2 * 3 * images * giant)
    told = json.loads((result.run_dir / "result.json").read_text())
    assert told == {
        name: value for name, value in json.loads(json.dumps(result.to_json())).items() if name != "history"
    }
    assert told["cost"] == result.cost.to_json() | {"in_words": str(result.cost)}
    assert told["advice"] == advice(METHODS["netbooster"], result.cost)
    assert told["cost"]["plain_epochs"] == 2 * (plain + giant) // plain
