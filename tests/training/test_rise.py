"""Slopes that follow the loss: what makes them wait, what they cost, and what a run says of it."""

import itertools
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nbcompile
from nbcompile.core.blocks import sites
from nbcompile.training import Epoch, Event, Stepped, TrainConfig, train
from nbcompile.training.methods.loss_budget import LossBudget

STEPS = 1437 // 256
OPTIONS: dict[str, Any] = {
    "method": "netbooster", "epochs": 4, "giant_epochs": 1, "plt_epochs": 2, "where": "all", "ratio": 2,
    "batch_size": 256, "warmup_epochs": 0, "lr": 0.05, "accelerator": "cpu",
}  # fmt: skip


def ran(net: nn.Module, output: Path, **options: Any) -> tuple[list[Epoch], list[float | None], nn.Module]:
    """The epochs, the slope after every step, and the giant."""
    events: list[Event] = []
    result = train(net, TrainConfig(**(OPTIONS | options)), output, on_event=events.append)
    slopes = [event.slope for event in events if isinstance(event, Stepped)]
    return [event for event in events if isinstance(event, Epoch)], slopes, result.model


def risen(budget: LossBudget, losses: list[float], start: int) -> list[int]:
    """Steps up after each step, of a giant whose ramp begins after ``start``."""
    up, seen = 0, []
    for loss in losses:
        budget.see(loss)
        up += budget.goes_up(up)
        seen.append(up - start)
    return seen


def test_within_the_budget_nothing_waits() -> None:
    budget = LossBudget(0.1, 3, 10)
    assert budget.length == 3  # a fourth, rounded up
    assert risen(budget, [2.0] * 6, 3) == [-2, -1, 0, 1, 2, 3]
    assert budget.over == pytest.approx(0.0)


def test_above_it_they_wait_until_the_steps_that_are_left_just_suffice() -> None:
    for start in (0, 1, 3):
        for steps in (1, 2, 7, 10, 11):
            budget = LossBudget(0.1, start, steps)
            giant, after = [2.0] * max(start, 1), [9.0] * (start + steps - max(start, 1))
            seen = risen(budget, giant + after, start)
            assert seen[-1] == budget.length, (start, steps)
            if start:  # with none the first loss is the giant's, and lets them rise
                assert seen[-budget.length - 1 :] == list(range(budget.length + 1))


def test_they_wait_while_the_loss_is_high_and_go_on_when_it_has_fallen() -> None:
    budget = LossBudget(0.5, 2, 400)
    seen = risen(budget, [1.0, 1.0, *[4.0] * 40, *[1.0] * 100], 2)
    assert seen[2] < 3, "the first step of a high loss moves the average by half of it"
    assert seen[41] < 5
    assert 0 < seen[-1] - seen[41] < 100


def test_the_giants_loss_is_an_average_of_its_last_steps() -> None:
    budget = LossBudget(0.5, 3, 9)
    for loss in (1.0, 2.0, 6.0):
        budget.see(loss)
    assert budget.over == 0.0
    budget.see(7.0)
    assert budget.over == pytest.approx(4.0 - 3.0)
    again = LossBudget(0.5, 3, 9)
    again.load_state_dict(budget.state_dict())
    assert (again.over, again.state_dict()) == (budget.over, budget.state_dict())


def test_a_run_whose_slopes_wait(net: nn.Module, tmp_path: Path) -> None:
    epochs, slopes, giant = ran(net, tmp_path / "trained.pt", plt_loss=1e-6)
    length = -(-2 * STEPS // 4)
    assert slopes[STEPS - 1] == 0.0
    assert slopes[3 * STEPS - 1] == 1.0, "it ends in time"
    assert all(a <= b for a, b in itertools.pairwise(slopes))  # type: ignore[operator]
    assert len({*slopes}) == length + 1
    assert [list(epoch.measured) for epoch in epochs] == [[], ["loss over the giant's"], ["loss over the giant's"], []]
    assert nbcompile.verify(giant, nbcompile.fuse(giant)).passed


@pytest.mark.slow
def test_a_generous_budget_is_risen_in_a_fourth(net: nn.Module, tmp_path: Path) -> None:
    _, slopes, _ = ran(net, tmp_path / "trained.pt", plt_loss=100.0)
    length = -(-2 * STEPS // 4)
    assert slopes[STEPS - 1 : STEPS + length] == [i / length for i in range(length + 1)]
    assert {*slopes[STEPS + length :]} == {1.0}


@pytest.mark.slow
def test_the_cheapest_block_comes_first(net: nn.Module, tmp_path: Path) -> None:
    epochs, slopes, giant = ran(net, tmp_path / "trained.pt", rise="cheapest-first")
    names = list(sites(giant))
    assert len(names) > 1
    costs = {name.removeprefix("cost of "): cost for name, cost in epochs[1].measured.items()}
    assert sorted(costs) == sorted(names)
    assert [epoch.measured for epoch in (epochs[0], *epochs[2:])] == [{}, {}, {}]
    assert slopes[STEPS : 3 * STEPS] == pytest.approx([i / (2 * STEPS) for i in range(1, 2 * STEPS + 1)], abs=0.1)
    starts = {name: int(block.ramp[1]) for name, block in sites(giant).items()}
    assert sorted(starts, key=starts.__getitem__) == sorted(costs, key=costs.__getitem__)


def test_a_dear_giant_is_said_before_the_first_epoch(
    net: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []

    def listener(event: Event) -> None:
        if isinstance(event, Epoch):
            said.extend(record.message for record in caplog.records)
            raise KeyboardInterrupt

    for ratio, wanted in ((12, True), (1, False)):
        caplog.clear()
        said.clear()
        config = TrainConfig(**(OPTIONS | {"ratio": ratio}))
        with caplog.at_level(logging.WARNING, "nbcompile"), pytest.raises(KeyboardInterrupt):
            train(net, config, tmp_path / f"{ratio}.pt", on_event=listener)
        found = [line for line in said if "× the training MACs of a plain one: a smaller --ratio takes less" in line]
        assert len(found) == wanted


def test_the_teacher_is_the_average_of_the_giant(net: nn.Module, tmp_path: Path) -> None:
    """Of the weights that were measured after the last epoch before the decay."""
    kept: dict[str, Any] = {}

    def listener(event: Event) -> None:
        if isinstance(event, Epoch):
            kept[f"{event.epoch}"] = torch.load(tmp_path / "trained-run" / "last.ckpt", weights_only=True)

    options = {"method": "netbooster+kd", "teacher": "self", "ema": 0.9}
    train(net, TrainConfig(**(OPTIONS | options)), tmp_path / "trained.pt", on_event=listener)
    before, after = kept["1"], kept["2"]
    taught, average, live = after["method"]["teacher"], before["average"]["model"], before["model"]
    weights = [name for name in live if name.endswith(("weight", "bias", "running_mean", "running_var"))]
    assert all(torch.equal(taught[name], average[name]) for name in weights)
    assert not all(torch.equal(taught[name], live[name]) for name in weights)
    assert {float(taught[name]) for name in taught if name.endswith(".slope")} == {0.0}
