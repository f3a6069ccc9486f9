import pytest
from torch import nn

from nbcompile.training.learning_rate import WarmupCosine
from nbcompile.training.methods.groups import parameter_groups


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    schedule = WarmupCosine(peak=0.4, warmup=4, steps=20)
    assert [schedule.lr(step) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_one_cosine_to_exactly_zero() -> None:
    schedule = WarmupCosine(peak=0.4, warmup=4, steps=20)
    assert schedule.lr(4) == 0.4
    assert schedule.lr(12) == pytest.approx(0.2)
    assert schedule.lr(20) == 0.0
    rates = [schedule.lr(step) for step in range(4, 21)]
    assert rates == sorted(rates, reverse=True)


def test_biases_and_norms_do_not_decay() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.LayerNorm((2, 4, 4)), nn.Flatten(), nn.Linear(32, 3)
    )
    model[0].bias.requires_grad_(False)
    decayed, plain = parameter_groups(model, 0.01)
    assert [p.shape for p in decayed["params"]] == [model[0].weight.shape, model[4].weight.shape]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    assert len(plain["params"]) == 2 + 2 + 1  # batch norm, layer norm, the linear's bias; not the frozen one


def test_no_empty_group() -> None:
    assert len(parameter_groups(nn.BatchNorm1d(3), 0.01)) == 1


def test_a_restart_begins_at_the_peak_and_ends_at_zero() -> None:
    schedule = WarmupCosine(peak=0.4, warmup=4, steps=24, restarts=[12, 16])
    assert [schedule.lr(step) for step in (4, 12, 16)] == [0.4, 0.4, 0.4]
    assert schedule.lr(8) == schedule.lr(14) == schedule.lr(20) == pytest.approx(0.2)
    for first, last in ((4, 12), (12, 16), (16, 24)):
        rates = [schedule.lr(step) for step in range(first, last)]
        assert rates == sorted(rates, reverse=True)
    plain = WarmupCosine(peak=0.4, warmup=0, steps=8, restarts=[4])
    assert [plain.lr(step) for step in range(4)] == [plain.lr(step) for step in range(4, 8)]
