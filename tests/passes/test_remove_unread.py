"""What no output depends on goes; whatever does more than it gives stays."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import nbcompile
from nbcompile.core.tracing.capture import capture
from nbcompile.passes import RemoveUnread
from nbcompile.testing import check_pass, scramble_
from tests.slow import one_in

X = torch.randn(2, 4, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    """Two layers, a norm, a buffer, and what is done with them."""

    def __init__(self, wiring: Callable[["Net", Tensor], object]) -> None:
        super().__init__()
        self.wiring = wiring
        self.conv, self.side = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 3, 1)
        self.norm, self.act = nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.register_buffer("seen", torch.zeros(4, 1, 1))
        scramble_(self)

    def forward(self, x: Tensor) -> object:
        return self.wiring(self, x)


def unread(result: object, *_: object) -> object:
    return result


def written(y: Tensor, *, at: Callable[[Tensor], Tensor]) -> Tensor:
    """``y``, after 1 was added at a part of it."""
    at(y).add_(1)
    return y


GOES = {
    "a branch": lambda m, x: unread(m.conv(x), m.side(x)),
    "a branch that is changed in place": lambda m, x: unread(m.conv(x), m.side(m.act(m.norm(m.conv(x)))).mul_(2)),
    "a view of it, too": lambda m, x: unread(m.conv(x), written(m.side(x), at=lambda y: y[:, 1:])),
    "one that reads another": lambda m, x: unread(m.conv(x), m.side(m.conv(m.conv(x)))),
    "one that only its size is asked of": lambda m, x: unread(m.conv(x), torch.zeros(m.side(x).shape[-1])),
    "by several names": lambda m, x: unread(m.conv(x), torch.cat([y.relu_() for y in m.side(x).split(1, 1)], 1)),
}


@pytest.mark.parametrize("name", list(GOES))
def test_what_goes(name: str) -> None:
    model = Net(GOES[name]).double()
    result = check_pass(RemoveUnread(), model, X)
    assert result.modified
    assert {name for name, _ in result.gm.named_modules() if name} == {"conv"}
    assert [node.target for node in result.gm.graph.find_nodes(op="call_module")] == ["conv"]
    assert "side" in dict(model.named_modules())


STAYS = {
    "a part that is changed": lambda m, x: written(m.conv(x), at=lambda y: y[:, 1:]),
    "of the second value": lambda m, x: written(m.conv(x), at=lambda y: torch.broadcast_tensors(x[None] + 1, y)[1][0]),
    "by a view of a view": lambda m, x: written(m.conv(x), at=lambda y: y.flatten(2).transpose(1, 2)[:, ::2]),
    "changed before it is read": lambda m, x: m.side(m.act(m.conv(x))) + 1,
    "the input": lambda m, x: unread(m.conv(x.clone()), x.mul_(2)),
    "a buffer": lambda m, x: unread(m.conv(x), m.seen.add_(1)),
    "out": lambda m, x: (lambda y: unread(y, torch.mul(x, 2, out=y)))(m.conv(x)),
    "random numbers": lambda m, x: unread(m.conv(x), torch.rand(3)),
}


@pytest.mark.parametrize("name", list(STAYS))
def test_what_stays(name: str) -> None:
    model = Net(STAYS[name]).double()
    gm = capture(model.requires_grad_(False), (X,)).eval()
    gm.graph.eliminate_dead_code(lambda node: node.op != "get_attr")
    before = [node.name for node in gm.graph.nodes]
    result = RemoveUnread()(gm)
    assert [node.name for node in result.gm.graph.nodes] == before


def test_modules_with_hooks_and_of_other_classes_stay() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    model = Net(lambda m, x: unread(m.conv(x), m.side(x), m.norm(x)))
    model.side.register_forward_hook(lambda *_: None)
    gm = capture(model.double(), (X,)).eval()
    gm.add_module("own", Own())
    with gm.graph.inserting_before(next(iter(gm.graph.find_nodes(op="output")))):
        gm.graph.call_module("own", (next(iter(gm.graph.find_nodes(op="placeholder"))),))
    assert RemoveUnread()(gm).rewritten == ("norm",)
    gm.get_submodule("conv").train()
    assert not RemoveUnread()(gm).modified


def test_checks_of_sizes_are_asked() -> None:
    def forward(m: Net, x: Tensor) -> object:
        side = m.side(x)
        return m.conv(x) if side.shape[-1] == x.shape[-1] else side

    gm = capture(Net(forward).double(), (X,)).eval()
    guards = [node for node in gm.graph.nodes if node.is_impure() and node.op == "call_function"]
    assert guards
    RemoveUnread()(gm)
    assert set(guards) <= set(gm.graph.nodes)


class Drawn(nn.Module):
    """A random order of layers, views and writes; what is returned is drawn, too."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3))
        scramble_(self)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        draw, values = random.Random(self.seed), [x + 1]
        for _ in range(12):
            y, z = draw.choice(values), draw.choice(values)
            match draw.randrange(8):
                case 0 | 1:
                    made = self.layers[draw.randrange(3)](y)
                case 2:
                    made = y.transpose(2, 3).transpose(2, 3)
                case 3:
                    made = y.flatten(2).view(y.shape) if y.is_contiguous() else y.clone()
                case 4:
                    made = y.mul_(0.5)
                case 5:
                    y[:, draw.randrange(4)] += 1
                    continue
                case 6:
                    y[..., 0] = z[..., 1]
                    continue
                case _:
                    made = torch.relu(y) + z
            values.append(made)
        return tuple(draw.choice(values) for _ in range(draw.choice((1, 1, 2))))


@pytest.mark.parametrize("part", one_in(2, range(4)))
def test_random_networks_give_what_they_gave(part: int) -> None:
    shorter = 0
    for seed in range(40 * part, 40 * part + 40):
        result = check_pass(RemoveUnread(), Drawn(seed).double(), X)
        shorter += result.modified
        called = {node.target for node in result.gm.graph.find_nodes(op="call_module")}
        assert called == {name for name, module in result.gm.named_modules() if isinstance(module, nn.Conv2d)}
    assert shorter > 15


def test_its_layers_cost_nothing_any_more() -> None:
    model = Net(GOES["a branch that is changed in place"])
    tiny = nbcompile.fuse(model, example_input=X.float())
    assert {layer.name for layer in nbcompile.cost(tiny, X.float()).layers} == {"conv"}
