from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from nbcompile.core.errors import PreconditionError
from nbcompile.core.memory.arena import Buffer, height, offsets
from nbcompile.core.memory.lifetimes import Lifetimes
from nbcompile.deploy.deploy_form import deploy
from nbcompile.zoo import mobilenetv2_tiny
from tests.symbolic import capture

X = torch.randn(2, 3, 8, 6)


def lifetimes(model: nn.Module, x: Tensor = X) -> Lifetimes:
    return Lifetimes(capture(model.eval()), (x,))


def found(model: nn.Module, x: Tensor = X) -> list[tuple[str, int, int, int]]:
    return [(b.name, b.nbytes, b.first, b.last) for b in lifetimes(model, x).buffers]


def test_a_chain() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU6(), nn.Dropout(), nn.Conv2d(4, 5, 1), nn.Sigmoid())
    assert found(model) == [("input", 144, -1, 0), ("0", 192, 0, 1), ("3", 240, 1, 2), ("4", 240, 2, 2)]


def test_padding_that_is_an_operator_of_its_own() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(3, 2, 1))
    assert found(model) == [
        *[("input", 144, -1, 0), ("padding of 0", 3 * 9 * 7, 0, 1), ("0", 48, 1, 2)],
        *[("padding of 1", 4 * 5 * 5, 2, 3), ("1", 16, 3, 3)],  # 4×3: no window reads the last padded row
    ]
    assert [name for name, *_ in found(model, torch.randn(1, 3, 9, 5))] == ["input", "0", "1"]
    lists: Any = [3, 3], [2, 2], [1, 1]
    assert found(nn.Sequential(model[0], nn.MaxPool2d(*lists))) == found(model)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = F.relu(self.b(y)) + y
        return z.view(x.shape[0], 3, 8, 6)  # asking keeps nothing alive


def test_what_is_read_later_stays() -> None:
    assert found(Residual()) == [
        ("x", 144, -1, 0),
        ("a", 144, 0, 2),
        ("b", 144, 1, 2),
        ("add", 144, 2, 3),
        ("view", 144, 3, 3),
    ]


class ReadBefore(Residual):
    """The convolution cannot compute the activation: something else reads what is before it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return F.relu(y) + y


def test_an_activation_of_its_own() -> None:
    assert [name for name, *_ in found(ReadBefore())] == ["x", "a", "relu", "add"]


def test_whole_numbers_take_four_bytes() -> None:
    class Best(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(1)

    assert found(Best())[-1][1] == 4 * 48


def test_the_peak_and_what_the_planner_makes_of_it() -> None:
    whole = lifetimes(Residual())
    assert [buffer.name for buffer in whole.peak()] == ["a", "b", "add"]
    assert [buffer.name for buffer in whole.alive(0)] == ["x", "a"]
    assert whole.bytes_at(0) == 2 * 144
    assert whole.arena == 3 * 144
    assert {node.name: step for node, step in whole.steps.items()}["relu"] == 1


def test_the_planner() -> None:
    """Large ones first, of equal ones the last, in the lowest gap; sizes are rounded up to 16 bytes."""
    buffers = [Buffer("a", 20, 0, 1), Buffer("b", 64, 1, 2), Buffer("c", 20, 2, 3), Buffer("d", 48, 3, 3)]
    assert offsets(buffers) == [64, 0, 64, 0]
    assert height(buffers) == 96
    assert height([]) == 0


def test_a_gap_that_is_too_small_is_left() -> None:
    buffers = [Buffer("a", 48, 0, 2), Buffer("b", 32, 0, 0), Buffer("c", 32, 1, 1), Buffer("d", 16, 0, 1)]
    assert offsets(buffers) == [0, 48, 48, 80]


def test_no_planner_goes_below_the_peak() -> None:
    graph = deploy(mobilenetv2_tiny().eval(), (x := torch.randn(1, 3, 64, 64),))
    assert isinstance(graph, fx.GraphModule)
    whole = Lifetimes(graph, x)
    assert whole.arena >= max(map(whole.bytes_at, whole.steps.values()))


def test_a_network_that_does_not_run() -> None:
    with pytest.raises(PreconditionError, match="does not run on the example input"):
        lifetimes(nn.Sequential(nn.Conv2d(4, 4, 1)))
