"""Muon for matrices, SGD for the rest."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Muon

import nbcompile
from nbcompile import UsageError
from nbcompile.training import TrainConfig, train
from nbcompile.training.methods.groups import inserted_groups, parameter_groups
from nbcompile.training.methods.muon import FACTOR, SGDWithMuon, with_matrices


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 12, 1, groups=2), nn.Conv2d(12, 5, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 7), nn.Linear(7, 4),
    )  # fmt: skip


X = torch.randn(5, 3, 7, 5, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 3, 0])
HIDDEN = ("3.weight", "6.weight", "9.weight")


def optimizer_of(model: nn.Module, **more: Any) -> SGDWithMuon:
    groups = with_matrices(parameter_groups(model, 0.01), model)
    return SGDWithMuon(groups, **({"lr": 0.1, "momentum": 0.9, "nesterov": True} | more))


def step(model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    F.cross_entropy(model(X), Y).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def named(model: nn.Module, optimizer: torch.optim.Optimizer, muon: bool) -> set[str]:
    ids = {id(p) for group in optimizer.param_groups if group["muon"] == muon for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in ids}


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_each_is_what_torch_makes_of_it(memory: torch.memory_format) -> None:
    """Beside torch's own two optimizers; a 1×1 layer there is a matrix by itself."""

    class Pointwise(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight[:, :, None, None], self.bias)

    ours = network().to(memory_format=memory)
    theirs = copy.deepcopy(ours)
    for i in (3, 6):
        inputs, outputs = theirs[i].in_channels, theirs[i].out_channels  # type: ignore[union-attr]
        matrix = Pointwise(inputs, outputs)  # type: ignore[arg-type]
        matrix.load_state_dict({k: v.flatten(1) if v.ndim == 4 else v for k, v in theirs[i].state_dict().items()})
        theirs[i] = matrix
    one = optimizer_of(ours)
    assert named(ours, one, muon=True) == set(HIDDEN)
    own = [p for name, p in theirs.named_parameters() if name in HIDDEN]
    ids = {id(p) for p in own}
    groups = parameter_groups(theirs, 0.01)
    rest = [{**group, "params": [p for p in group["params"] if id(p) not in ids]} for group in groups]
    muon = Muon(own, lr=FACTOR * 0.1, weight_decay=0.01 / FACTOR / 0.1, momentum=0.9)
    sgd = SGD(rest, lr=0.1, momentum=0.9, nesterov=True)
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    for _ in range(3):
        step(ours, one)
        step(theirs, muon, sgd)
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p, theirs.get_parameter(name).reshape(p.shape), rtol=1e-3, atol=1e-4)
        assert not torch.equal(p, before[name])


def test_goes_on_from_its_state() -> None:
    whole, parts = network(), network()
    one, two = optimizer_of(whole), optimizer_of(parts)
    for _ in range(4):
        step(whole, one)
    for _ in range(2):
        step(parts, two)
    resumed = network()
    resumed.load_state_dict(parts.state_dict())
    three = optimizer_of(resumed)
    three.load_state_dict(copy.deepcopy(two.state_dict()))
    for _ in range(2):
        step(resumed, three)
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))


def test_inserted_layers_keep_a_rate_of_their_own() -> None:
    giant = nbcompile.expand(network(), X, where=["3"], ratio=2)
    groups = with_matrices(inserted_groups(parameter_groups(giant, 0.01), giant, 0.5, 2.0), giant)
    scaled = [group for group in groups if group["muon"] and "lr_scale" in group]
    assert [(group["lr_scale"], group["weight_decay"]) for group in scaled] == [(0.5, 0.02)]
    inside = {id(p) for p in giant.get_submodule("3").parameters()}
    assert {id(p) for p in scaled[0]["params"]} < inside
    assert len(scaled[0]["params"]) == 2  # the two 1×1 layers of the block


def test_a_rate_of_nothing_moves_nothing_and_twice_the_rate_twice() -> None:
    moved = []
    for lr in (0.0, 0.01, 0.02):
        model = network()
        before = model.get_parameter("3.weight").detach().clone()
        step(model, SGDWithMuon(with_matrices(parameter_groups(model, 0.0), model), lr=lr, momentum=0.9, nesterov=True))
        moved.append(model.get_parameter("3.weight").detach() - before)
    assert not moved[0].any()
    torch.testing.assert_close(moved[2], 2 * moved[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "method", ["vanilla", *(pytest.param(m, marks=pytest.mark.slow) for m in ("netbooster", "netaug", "rocket"))]
)
def test_trains(net: nn.Module, tmp_path: Path, method: str) -> None:
    few: dict[str, Any] = {"epochs": 2, "warmup_epochs": 0, "train_images": 640, "where": "last:1"}
    found = train(net, TrainConfig(method=method, optimizer="muon", accelerator="cpu", **few), tmp_path / "trained.pt")
    assert found.history[-1].loss < found.history[0].loss
    assert found.history[-1].train_accuracy > 0.2


def test_is_refused_where_gradients_are_multiplied() -> None:
    with pytest.raises(UsageError, match=r"^method 'grad-reparam' goes with optimizer sgd: Muon undoes what mul"):
        TrainConfig(method="grad-reparam", optimizer="muon")
    with pytest.raises(UsageError, match=r"^optimizer must be one of sgd, muon, not 'adam'$"):
        TrainConfig(optimizer="adam")
