"""What is computed twice of the same values is computed once, where nobody can tell."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nbcompile
from nbcompile.core.tracing.capture import capture
from nbcompile.passes import MergeCommon
from nbcompile.testing import check_pass, scramble_
from tests.slow import one_in

X = torch.randn(2, 4, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    """A stem, a head, a buffer, and what is done with them."""

    def __init__(self, wiring: Callable[["Net", Tensor], object]) -> None:
        super().__init__()
        self.wiring = wiring
        self.stem, self.norm, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.head, self.scale = nn.Conv2d(4, 3, 1), nn.Parameter(torch.rand(4, 1, 1))
        self.register_buffer("seen", torch.zeros(4, 1, 1))
        scramble_(self)

    def forward(self, x: Tensor) -> object:
        return self.wiring(self, x)


def calls(gm: nn.Module, name: str) -> int:
    return sum(node.target == name for node in gm.graph.nodes)  # type: ignore[union-attr,operator]


ONCE = {
    "a layer": lambda m, x: m.head(m.stem(x)) + m.stem(x).mean(),
    "a chain": lambda m, x: m.head(F.relu(m.norm(m.stem(x)))) + F.relu(m.norm(m.stem(x))).mean(),
    "with a parameter": lambda m, x: m.stem(x * m.scale).relu() + m.stem(x * m.scale).sigmoid(),
    "with sizes": lambda m, x: m.stem(x[:, :, : x.shape[2] // 2]).relu() + m.stem(x[:, :, : x.shape[2] // 2]).tanh(),
    "one of them is returned": lambda m, x: (m.stem(x), m.head(m.stem(x))),
}


@pytest.mark.parametrize("name", list(ONCE))
def test_once(name: str) -> None:
    model = Net(ONCE[name]).double()
    result = check_pass(MergeCommon(), model, X)
    assert calls(capture(model, (X,)), "stem") == 2
    assert calls(result.gm, "stem") == 1


TWICE = {
    "both are returned": lambda m, x: (m.stem(x), m.stem(x)),
    "views of both are": lambda m, x: (m.stem(x)[:, 1:], m.stem(x)[:, :2]),
    "one is changed": lambda m, x: m.act(m.stem(x)) + m.stem(x),
    "a view of one is": lambda m, x: m.stem(x)[:, 0].mul_(2).mean() + m.stem(x),
    "the input is changed between": lambda m, x: m.stem(y := x + 1) + m.stem(y.mul_(2)) + m.stem(y),
    "other arguments": lambda m, x: F.conv2d(x, m.stem.weight) + F.conv2d(x, m.stem.weight, padding=1)[..., 1:-1, 1:-1],
    "random numbers": lambda m, x: torch.rand(3).to(x).sum() + torch.rand(3).to(x).sum() + m.stem(x),
    "a buffer that is changed": lambda m, x: m.seen.fill_(1).sum() + m.seen.fill_(1).sum() + m.stem(x),
}


@pytest.mark.parametrize("name", list(TWICE))
def test_twice(name: str) -> None:
    gm = capture(Net(TWICE[name]).double().requires_grad_(False), (X,)).eval()
    before = [node.name for node in gm.graph.nodes if node.op != "get_attr"]
    MergeCommon()(gm)
    assert [node.name for node in gm.graph.nodes if node.op != "get_attr"] == before


def test_of_three_two_stay_that_are_returned() -> None:
    model = Net(lambda m, x: (m.head(m.stem(x)), m.stem(x)[:, 1:], m.stem(x)[:, :2]))
    assert calls(check_pass(MergeCommon(), model.double(), X).gm, "stem") == 2


def test_modules_with_hooks_are_called_each_time() -> None:
    model = Net(ONCE["a layer"]).double()
    model.stem.register_forward_hook(lambda *_: None)
    assert calls(check_pass(MergeCommon(), model, X).gm, "stem") == 2


def test_modules_that_draw_random_numbers_draw_each_time() -> None:
    model = Net(lambda m, x: m.pool(m.stem(x)) + m.pool(m.stem(x)))
    model.pool = nn.FractionalMaxPool2d(2, 3)
    gm = capture(model.double(), (X,), proof=False).eval()
    MergeCommon()(gm)
    assert (calls(gm, "pool"), calls(gm, "stem")) == (2, 1)


class Drawn(nn.Module):
    """A random order of calls on few values, so that many are the same, with writes among them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(2))
        scramble_(self)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        draw, values = random.Random(self.seed), [x + 1]
        for _ in range(14):
            y = draw.choice(values[-4:])
            match draw.randrange(9):
                case 0 | 1 | 2 | 3:
                    values.append(self.layers[draw.randrange(2)](y))
                case 4:
                    values.append(torch.relu(y))
                case 5:
                    values.append(y.transpose(2, 3).transpose(2, 3))
                case 6:
                    y.mul_(0.5)
                case 7:
                    y[:, draw.randrange(4)] += 1
                case _:
                    values.append(y + draw.choice(values))
        return tuple(draw.choice(values) for _ in range(2))


@pytest.mark.parametrize("part", one_in(2, range(4)))
def test_random_networks_give_what_they_gave(part: int) -> None:
    merged = 0
    for seed in range(40 * part, 40 * part + 40):
        merged += check_pass(MergeCommon(), Drawn(seed).double(), X).modified
    assert merged > 6


def test_it_costs_once() -> None:
    model = Net(ONCE["a chain"])
    tiny = nbcompile.fuse(model, example_input=X.float())
    assert nbcompile.cost(tiny, X.float()).macs == 35 * (4 * 4 * 9 + 3 * 4)
