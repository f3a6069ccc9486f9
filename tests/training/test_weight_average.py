"""The moving average of the weights."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nbcompile
from nbcompile.core.blocks import sites
from nbcompile.training import TrainConfig, train
from nbcompile.training.data.load import load_data
from nbcompile.training.weight_average import Average
from tests.slow import one_in


class Net(nn.Module):
    """With every kind of buffer."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out


def stepped(model: nn.Module) -> None:
    """One optimiser step, as far as an average sees it."""
    with torch.no_grad():
        for x in (*model.parameters(), *model.buffers()):
            x.add_(torch.randn(x.shape) if x.is_floating_point() else 1)


def test_parameters_and_statistics_are_averaged_with_a_decay_that_grows() -> None:
    live = Net()
    average = Average(live, 0.3)
    expected = {name: x.clone() for name, x in live.state_dict().items()}
    for decay in (1 / 10, 2 / 11, 3 / 12, 0.3, 0.3, 0.3):  # (1 + n) / (10 + n), until it is more than 0.3
        stepped(live)
        average.update(live)
        for name, x in live.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * x
    average.follow(live)
    found = average.model.state_dict()
    for name in ("conv.weight", "conv.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"):
        torch.testing.assert_close(found[name], expected[name])
        assert not torch.equal(found[name], live.state_dict()[name])
    assert found["norm.num_batches_tracked"] == live.norm.num_batches_tracked == 6
    assert torch.equal(average.model.get_buffer("mask"), live.mask), "a mask of infinities was averaged"


def test_it_begins_anew_wherever_slopes_move() -> None:
    live = Net()
    average, again = Average(live, 0.5), Average(Net(), 0.5)
    expected = live.conv.weight.detach().clone()
    seen = [(0.0, 1 / 10), (0.0, 2 / 11), (0.25, 1 / 10), (0.5, 1 / 10), (1.0, 1 / 10), (1.0, 2 / 11), (1.0, 3 / 12)]
    for number, (slope, decay) in enumerate(seen):
        stepped(live)
        average.update(live, slope)
        expected = decay * expected + (1 - decay) * live.conv.weight.detach()
        if number == 4:
            again.load_state_dict(copy.deepcopy(average.state_dict()))
        elif number > 4:
            again.update(live, slope)
    torch.testing.assert_close(average.model.state_dict()["conv.weight"], expected)
    assert torch.equal(again.model.state_dict()["conv.weight"], average.model.state_dict()["conv.weight"])


@pytest.mark.slow
def test_while_slopes_rise_it_is_as_good_as_the_last_weights(net: nn.Module, tmp_path: Path) -> None:
    def accuracies(ema: float) -> list[float]:
        config = TrainConfig(
            method="netbooster", giant_epochs=5, plt_epochs=2, epochs=7, batch_size=64, where="all", ratio=4, ema=ema
        )
        return [epoch.val_accuracy for epoch in train(net, config, tmp_path / f"{ema}.pt").history]

    last, average = accuracies(0.0), accuracies(0.99)
    assert max(last[-2:]) > 0.3, "nothing is learnt here"
    assert min(x - y for x, y in zip(average[-2:], last[-2:], strict=True)) > -0.1, (average, last)


def test_blocks_follow_the_live_network() -> None:
    live = nbcompile.expand(Net(), torch.zeros(1, 1, 5, 5), where=["conv"], ratio=2)
    average = Average(live, 0.9)
    plt = nbcompile.PLT(live, steps=2)
    for _ in range(2):
        plt.step()
        average.update(live)
    nbcompile.collapse_(live)
    average.follow(live)
    (block,) = sites(average.model).values()
    assert (float(block.slope), block.ramp.tolist(), block.collapsed) == (1.0, [2, 0, 2], True)
    nbcompile.fuse(average.model)


def test_goes_on_from_its_state() -> None:
    live = Net()
    one, two = Average(live, 0.9), Average(Net(), 0.9)
    for i in range(6):
        stepped(live)
        one.update(live)
        if i == 2:
            two.load_state_dict(copy.deepcopy(one.state_dict()))
        if i > 2:
            two.update(live)
    assert all(map(torch.equal, one.model.state_dict().values(), two.model.state_dict().values()))


@pytest.mark.parametrize("method", one_in(2, ["vanilla", "netbooster"]))
def test_the_average_is_measured_and_written_and_does_not_touch_the_training(
    net: nn.Module, tmp_path: Path, method: str
) -> None:
    def config(ema: float) -> TrainConfig:
        return TrainConfig(
            method=method, ema=ema, epochs=3, batch_size=128, warmup_epochs=1, where="all", ratio=2, accelerator="cpu"
        )

    plain = train(net, config(0.0), tmp_path / "plain.pt")
    averaged = train(net, config(0.9), tmp_path / "averaged.pt")
    assert [epoch.loss for epoch in averaged.history] == [epoch.loss for epoch in plain.history]
    assert [epoch.val_accuracy for epoch in averaged.history] != [epoch.val_accuracy for epoch in plain.history]
    last = torch.load(tmp_path / "averaged-run" / "last.ckpt", weights_only=True)
    assert torch.equal(last["model"]["9.weight"], plain.model.state_dict()["9.weight"])
    assert torch.equal(last["average"]["model"]["9.weight"], averaged.model.state_dict()["9.weight"])
    loaded = nbcompile.load(tmp_path / "averaged.pt").eval()
    images, labels = load_data(config(0.9)).val[list(range(360))]  # type: ignore[misc]
    with torch.no_grad():
        right = (loaded(images).argmax(1) == labels).sum().item()
    assert right / 360 == averaged.accuracy


@pytest.mark.parametrize(
    ("options", "steps", "decay"),
    [
        ({"epochs": 60}, 44, 1 - 1 / 105.6),
        ({"epochs": 30}, 390, 1 - 1 / 468),
        ({"epochs": 3}, 5, 0.0),  # 4 % of it is not one step
        ({"epochs": 60, "ema": 0.999}, 44, 0.999),
        ({"epochs": 60, "ema": 0.0}, 44, 0.0),
    ],
)
def test_by_default_it_spans_a_share_of_the_run(options: dict[str, Any], steps: int, decay: float) -> None:
    assert TrainConfig(**options).ema_decay(steps) == pytest.approx(decay)


METHODS = ("netbooster", "rocket", "netaug", "netdistiller", "netbooster+netaug")


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=pytest.mark.slow if m != "netbooster" else ()) for m in METHODS]
)
def test_what_is_fused_is_the_average(net: nn.Module, tmp_path: Path, method: str) -> None:
    """By default, in every method whose network changes, or whose slopes do."""
    where = "last:1" if method == "rocket" else "all"
    config = TrainConfig(method=method, epochs=5, where=where, ratio=2, train_images=640, accelerator="cpu")
    result = train(net, config, tmp_path / "trained.pt")
    last = torch.load(tmp_path / "trained-run" / "last.ckpt", weights_only=True)
    average, live = (last[key] for key in ("average", "model"))
    prefix = "network." if method == "rocket" else ""
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, average["model"][prefix + name]), name
    assert any(not torch.equal(value, live[prefix + name]) for name, value in result.model.state_dict().items())
    assert all(float(block.slope) == 1 for block in sites(result.model).values())
    assert result.accuracy == result.history[-1].val_accuracy
    if result.fused_accuracy is not None:
        assert result.fused_accuracy == pytest.approx(result.accuracy, abs=1.5 / 360)
    assert (result.fused_accuracy is None) == (method == "rocket")
