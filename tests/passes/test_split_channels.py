from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from nbcompile.core.errors import UsageError
from nbcompile.core.graph.nodes import render_graph
from nbcompile.core.memory.lifetimes import Lifetimes
from nbcompile.core.tracing.capture import capture
from nbcompile.deploy.deploy_form import deploy
from nbcompile.passes.split_channels import SplitChannels, splittable
from nbcompile.testing import check_pass, enliven_
from nbcompile.zoo import mobilenetv2_tiny

X = torch.randn(2, 3, 7, 5, dtype=torch.float64)


def block(
    act: nn.Module | None = None, hidden: int = 8, first: int = 1, multiplier: int = 1, **depthwise: Any
) -> nn.Module:
    """Pointwise, activation, depthwise, activation, projection."""
    act = act or nn.ReLU6()
    wide = nn.Conv2d(hidden, hidden * multiplier, 3, groups=hidden, **{"padding": 1, **depthwise})
    return nn.Sequential(
        nn.Conv2d(3, hidden, first), act, wide, nn.ReLU6(inplace=True), nn.Conv2d(hidden * multiplier, 4, 1)
    ).double()


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize(
    "model",
    [
        block(),
        block(nn.ReLU(inplace=True), stride=2),
        block(nn.Hardswish(), bias=False, dilation=2),
        block(nn.Identity(), multiplier=2),
        block(nn.Tanh(), padding_mode="reflect"),
        block(nn.Hardtanh(-2, 2), first=3),
    ],
)
def test_splits(model: nn.Module, count: int) -> None:
    result = check_pass(SplitChannels({"0": count}), model, X)
    assert result.rewritten == ("0",)
    assert result.how == (f"0: in {count} parts, with 2",)


def test_one_part_runs_after_the_other(golden: Callable[[str, str], None]) -> None:
    golden("split_channels", render_graph(check_pass(SplitChannels({"0": 2}), block(), X).gm))


class Functional(nn.Module):
    """Activations as functions; what follows has two readers."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.depth = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6, padding=1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.depth(F.relu6(self.wide(x))))
        return y * y.mean((2, 3), keepdim=True).sigmoid()


def test_functions_and_readers_of_the_result() -> None:
    result = check_pass(SplitChannels({"wide": 3}), Functional().double(), X)
    assert [str(node.target) for node in result.gm.graph.nodes][1:4:2] == ["wide.part0", "depth.part0"]


class Shared(nn.Module):
    """One activation module for all."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.wide, self.depth = nn.ReLU(), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.depth(self.act(self.wide(self.act(x)))))
        return y


def test_an_activation_that_others_use_stays() -> None:
    result = check_pass(SplitChannels({"wide": 2}), Shared().double(), X)
    assert isinstance(result.gm.get_submodule("act"), nn.ReLU)
    assert {str(n.target) for n in result.gm.graph.nodes if "act" in str(n.target)} == {
        *("act", "act_.part0", "act_.part1", "act__.part0", "act__.part1")
    }


class WritesItsInput(Shared):
    """Between the two layers."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        y = self.wide(x)
        z = x.relu_()
        w: Tensor = self.depth(y) + z[:, :, 1:-1, 1:-1].mean()
        return w


def test_the_parts_read_what_the_layer_read() -> None:
    assert check_pass(SplitChannels({"wide": 2}), WritesItsInput().double(), X).modified


class Twice(Shared):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.depth(self.depth(self.wide(x)))
        return y


class Read(Shared):
    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x)
        z: Tensor = self.depth(y)
        return z + y.mean()


class Weight(Shared):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.depth(self.wide(x)) + self.wide.weight.mean()
        return y


class Tied(Shared):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(3, 6, 1)
        self.other.weight = self.wide.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.depth(self.wide(x)) + self.other(x)[..., 1:-1, 1:-1]
        return y


NO_PAIR = "no depthwise convolution alone reads it, through elementwise activations"


@pytest.mark.parametrize(
    ("model", "name", "reason"),
    [
        (block(), "0", "its 8 channels do not divide into 3 parts"),
        (block(), "2", "its own channels are grouped"),
        (block(), "4", NO_PAIR),
        (block(), "nowhere", "it is no convolution of this network"),
        (block(nn.PReLU(8)), "0", NO_PAIR),
        (block(nn.Softmax2d()), "0", NO_PAIR),
        (Read(), "wide", NO_PAIR),
        (Twice(), "wide", NO_PAIR),
        (Twice(), "depth", "it is called 2 times"),
        (Weight(), "wide", "other code reads its weight directly"),
        (Tied(), "wide", "it shares a parameter with 'other.weight'"),
        (
            nn.Sequential(nn.ConvTranspose2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6)),
            "0",
            "it is a transposed convolution",
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(105, 4)), "1", "it is no convolution of this network"),
    ],
)
def test_leaves_alone_and_says_why(model: nn.Module, name: str, reason: str) -> None:
    result = check_pass(SplitChannels({name: 3}), model.double(), X)
    assert [(skip.name, skip.reason) for skip in result.skipped] == [(name, reason)]


@pytest.mark.parametrize("count", [1, True, 2.0])
def test_the_number_of_parts(count: Any) -> None:
    with pytest.raises(UsageError, match=r"parts of '0' must be a whole number of 2 or more, not"):
        SplitChannels({"0": count})


def test_a_network_needs_less_memory_so() -> None:
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    model = enliven_(mobilenetv2_tiny().double(), x)
    graph = deploy(model, (x,))
    assert isinstance(graph, fx.GraphModule)
    found = splittable(capture(graph))
    assert len(found) == 17
    result = check_pass(SplitChannels({pair.name: 2 for pair in found}), graph, x)
    assert len(result.rewritten) == 17
    assert Lifetimes(result.gm, (x,)).arena < Lifetimes(graph, (x,)).arena
