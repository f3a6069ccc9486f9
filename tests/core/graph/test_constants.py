from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from nbcompile.core.graph.aliasing import Aliasing
from nbcompile.core.graph.constants import Constants
from tests.symbolic import capture


class Net(nn.Module):
    """Constants of every kind, and what only looks like one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(4.0).reshape(2, 2, 1, 1))
        self.register_buffer("count", torch.zeros(2))
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Any:
        scaled = F.normalize(self.weight * 2, dim=0).view(2, 2, 1, 1)
        noise = torch.rand_like(self.weight)
        y = F.conv2d(x, scaled) + F.conv2d(x, noise)
        self.count.add_(1)
        written = self.weight + 1
        written.mul_(2)
        return self.norm(self.norm(y)) + written.sum() + torch.ones(2, 1, 1) + self.count.sum(), self.weight.sum()


def found() -> tuple[dict[str, fx.Node], Constants]:
    gm = capture(Net())
    return {node.name: node for node in gm.graph.nodes}, Constants(gm, Aliasing(gm))


def test_what_is_constant() -> None:
    nodes, constants = found()
    assert {name for name, node in nodes.items() if node in constants} == {
        *("weight", "mul", "normalize", "view", "_tensor_constant0", "sum_3"),
    }


@fx.wrap
def foreign(weight: Tensor) -> Tensor:
    return weight + torch.rand(())


def test_what_is_drawn_and_what_nobody_knows_is_not_constant() -> None:
    class Drawn(Net):
        def forward(self, x: Tensor) -> Any:
            w = self.weight
            return foreign(w), torch.binomial(w, w), F.fractional_max_pool2d(w, 1, output_size=1), torch.empty_like(w)

    gm = capture(Drawn())
    constants = Constants(gm, Aliasing(gm))
    assert [node.name for node in gm.graph.nodes if node in constants] == ["weight"]


def test_values() -> None:
    nodes, constants = found()
    model = Net()
    expected = F.normalize(model.weight * 2, dim=0)
    assert torch.equal(constants.value(nodes["view"]), expected)
    assert not constants.value(nodes["view"]).requires_grad
    assert constants.value(nodes["x"]) is None
    assert constants.value(2.5) == 2.5


def test_readers_and_steps() -> None:
    nodes, constants = found()
    assert constants.readers(nodes["conv2d"]) == {nodes["conv2d"], nodes["rand_like"], nodes["add_1"], nodes["output"]}
    assert constants.shared(nodes["conv2d"])
    assert constants.readers(nodes["norm"]) == {nodes["norm"], nodes["norm_1"]}
    assert constants.readers(nodes["conv2d_1"]) == {nodes["conv2d_1"]}
    assert constants.steps(nodes["conv2d"]) == 3
    assert constants.steps(nodes["norm"]) == 0
