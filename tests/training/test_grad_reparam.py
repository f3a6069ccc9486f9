"""The method that multiplies gradients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nbcompile
from nbcompile import UsageError
from nbcompile.core.options import options_of
from nbcompile.reparam.branches import BRANCHES
from nbcompile.training import TrainConfig, train

FEW: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 100,
    "warmup_epochs": 0,
    "accelerator": "cpu",
    "train_images": 300,
    "ema": 0.0,
}


def test_the_option_offers_all_branches() -> None:
    assert options_of(TrainConfig)["branches"].choices == tuple(BRANCHES)


def test_trains_an_ordinary_network_at_the_cost_of_plain_training(net: nn.Module, tmp_path: Path) -> None:
    plain = train(net, TrainConfig(method="vanilla", **FEW), tmp_path / "plain.pt")
    found = {}
    for branches in BRANCHES:
        config = TrainConfig(method="grad-reparam", branches=branches, **FEW)
        found[branches] = train(net, config, tmp_path / f"{branches}.pt")
        assert (found[branches].cost.total, found[branches].cost.over_plain) == (plain.cost.total, 1.0)
        assert found[branches].fused_accuracy is None
        assert not any(p._backward_hooks for p in net.parameters()), "the caller's network learns by itself"
    weights = {tuple(result.model.state_dict()["0.weight"].flatten().tolist()) for result in (plain, *found.values())}
    assert len(weights) == 4, "each set of branches is another way to learn"
    state = torch.load(tmp_path / "rep.pt", weights_only=True)["state_dict"]
    net.load_state_dict(state, strict=True)
    assert type(nbcompile.load(tmp_path / "rep.pt", model=net)) is nn.Sequential


def test_branches_that_are_drawn_are_those_of_the_seed(net_for: Callable[[], nn.Module], tmp_path: Path) -> None:
    config = TrainConfig(method="grad-reparam", draw_branches=True, lr=1e-12, **FEW)
    one, two = (train(net_for(), config, tmp_path / f"{name}.pt").model.get_parameter("0.weight") for name in "ab")
    assert torch.equal(one, two)
    assert (one - net_for().get_parameter("0.weight"))[:, :, 1, 1].abs().min() > 1e-6


def test_a_teacher_may_stand_beside_it(net_for: Callable[[], nn.Module], tmp_path: Path) -> None:
    config = TrainConfig(method="grad-reparam+kd", teacher="net", **FEW)
    result = train(net_for(), config, tmp_path / "taught.pt", teacher=net_for())
    assert result.cost.teacher > 0


def test_refuses_giants_and_networks_without_branches(net: nn.Module, tmp_path: Path) -> None:
    config = TrainConfig(method="grad-reparam", **FEW)
    giant = nbcompile.expand(net, torch.zeros(1, 1, 8, 8), where="all")
    with pytest.raises(UsageError, match=r"^method 'grad-reparam' trains a network of the deployed size: give the net"):
        train(giant, config, tmp_path / "trained.pt")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(UsageError, match=r"^grad_reparam: no layer of Sequential has more than one branch of 'rep'"):
        train(flat, config, tmp_path / "trained.pt")
    assert not (tmp_path / "trained-run").exists()
