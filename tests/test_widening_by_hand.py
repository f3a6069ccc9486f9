"""A giant at a drawn width is a real network of that width, built by hand: outputs and all gradients."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nbcompile
from nbcompile.core.numerics import relative_error
from nbcompile.testing import enliven_
from nbcompile.wide.widths import widths_of
from nbcompile.widening import at_width, widen, width_groups
from tests.test_widening import gradient, read

X = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def conv(read: int, written: int, size: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(read, written, size, padding=size // 2, groups=groups)


class Concat(nn.Module):
    """A depthwise layer over two maps: its channels must follow those that it reads."""

    def __init__(self, a: int = 3, b: int = 4, c: int = 5) -> None:
        super().__init__()
        self.a, self.b, self.depth = conv(3, a), conv(3, b, 3), conv(a + b, a + b, 3, a + b)
        self.c, self.norm, self.head = conv(a + b, c), nn.BatchNorm2d(a + b), nn.Linear(48 * c, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(torch.cat([self.a(x).relu(), self.b(x)], 1)))
        return self.head(self.c(y.relu()).flatten(1))


class Shuffle(nn.Module):
    """Two maps that are shuffled, and parted again: they grow as one; those between by themselves."""

    def __init__(self, a: int = 4, inner: int = 3, last: int = 5) -> None:
        super().__init__()
        self.a, self.b, self.down, self.up = conv(3, a), conv(3, a), conv(a, inner), conv(inner, last, 3)
        self.head = conv(a + last, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x), self.b(x)], 1)
        one, other = y.view(len(x), 2, -1, 8, 6).transpose(1, 2).reshape(y.shape).chunk(2, 1)
        return self.head(torch.cat([one, self.up(self.down(other).relu())], 1))


class Groups(nn.Module):
    """Groups of two channels, read again by groups of three."""

    def __init__(self, a: int = 12, b: int = 12, c: int = 8) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, a), conv(a, b, 3, a // 2), conv(b, c, 1, b // 3), conv(c, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.b(self.a(x).relu()).relu()).relu())


class Shared(nn.Module):
    """One layer, norm and activation, used twice; a scale for each channel."""

    def __init__(self, a: int = 5) -> None:
        super().__init__()
        self.stem, self.twice, self.norm, self.slopes = conv(3, a), conv(a, a, 3), nn.BatchNorm2d(a), nn.PReLU(a)
        self.scale, self.head = nn.Parameter(torch.rand(1, a, 1, 1)), conv(a, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.slopes(self.twice(self.stem(x)))
        return self.head(self.norm(self.slopes(self.twice(y)) * self.scale + y))


class Gate(nn.Module):
    """Both halves of one layer, multiplied; squeeze and excite."""

    def __init__(self, a: int = 4, b: int = 6, c: int = 3) -> None:
        super().__init__()
        self.a, self.both, self.down, self.up, self.head = (
            conv(3, a),
            conv(a, 2 * b),
            conv(b, c),
            conv(c, b),
            conv(b, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.both(self.a(x).relu()).chunk(2, 1)
        y = one * other.sigmoid()
        return self.head(y * self.up(self.down(y.mean((2, 3), keepdim=True)).relu()).sigmoid())


class Ghost(nn.Module):
    """Cheap channels beside others, cut off at a number that the module keeps."""

    def __init__(self, primary: int = 3, kept: int = 6) -> None:
        super().__init__()
        self.primary, self.cheap, self.kept = conv(3, primary), conv(primary, primary, 3, primary), kept
        self.depth, self.head = conv(kept, kept, 3, kept), conv(kept, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.primary(x).relu()
        return self.head(self.depth(torch.cat([y, self.cheap(y)], 1)[:, : self.kept]).relu())


class Scales(nn.Module):
    """Parts of a split, one added to the next; sizes in a tuple and a list."""

    def __init__(self, width: int = 3, rest: int = 2) -> None:
        super().__init__()
        self.sizes = (width, width, rest)
        self.a, self.b, self.head = conv(3, 2 * width + rest), conv(width, width, 3), conv(2 * width + rest, 2)

    def forward(self, x: Tensor) -> Tensor:
        one, other, rest = self.a(x).split(self.sizes, 1)
        y = self.b(one)
        return self.head(torch.cat([y, self.b(y + other), rest], 1))


class Paths(nn.Module):
    """Maps that are stacked, weighed and summed."""

    def __init__(self, a: int = 4, b: int = 3) -> None:
        super().__init__()
        self.one, self.other, self.down, self.up, self.head = (
            conv(3, a),
            conv(3, a, 3),
            conv(a, b),
            conv(b, a),
            conv(a, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([self.one(x), self.other(x)], 1)
        weight = self.up(self.down(y.sum(1).mean((2, 3), keepdim=True)).relu())
        return self.head((y * weight.sigmoid().unsqueeze(1)).sum(1))


class Tokens(nn.Module):
    """Patches with a class token and positions, a layer norm, an MLP and a mixer of places."""

    def __init__(self, a: int = 6, hidden: int = 7) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, a, 2, 2), nn.Parameter(torch.randn(1, 1, a))
        self.places, self.norm = nn.Parameter(torch.randn(1, 13, a)), nn.LayerNorm(a)
        self.up, self.down, self.mix, self.head = (
            nn.Linear(a, hidden),
            nn.Linear(hidden, a),
            nn.Linear(13, 13),
            nn.Linear(a, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(len(x), -1, -1), y], 1) + self.places
        y = y + self.down(F.gelu(self.up(self.norm(y))))
        return self.head((y + self.mix(y.transpose(1, 2)).transpose(1, 2))[:, 0])


class Upwards(nn.Module):
    """A transposed layer, pooling, padding, a one-dimensional layer behind them."""

    def __init__(self, a: int = 4, b: int = 5, c: int = 3) -> None:
        super().__init__()
        self.a, self.up, self.line = conv(3, a), nn.ConvTranspose2d(a, b, 2, 2), nn.Conv1d(b, c, 3)
        self.head = nn.Linear(c, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.pad(self.up(self.a(x).relu()), (1, 0, 2, 1)), 3)
        return self.head(self.line(y.flatten(2)).mean(2))


def rows(*names: str) -> Callable[[nn.Module], list[int]]:
    """How many outputs these layers have."""
    return lambda model: [getattr(model, name).weight.shape[0] for name in names]


NETWORKS: dict[type[nn.Module], Callable[[nn.Module], list[int]]] = {
    Concat: rows("a", "b", "c"),
    Shuffle: rows("a", "down", "up"),
    Groups: rows("a", "b", "c"),
    Shared: rows("stem"),
    Gate: lambda model: [model.a.weight.shape[0], model.both.weight.shape[0] // 2, model.down.weight.shape[0]],
    Ghost: lambda model: [model.primary.weight.shape[0], model.kept],
    Scales: lambda model: [model.sizes[0], model.sizes[2]],
    Paths: rows("one", "down"),
    Tokens: lambda model: [model.norm.weight.shape[0], model.up.weight.shape[0]],
    Upwards: lambda model: [model.a.weight.shape[0], *model.up.weight.shape[1:2], model.line.weight.shape[0]],
}


def grown(giant: nn.Module) -> set[str]:
    return {name for name, group in width_groups(giant).items() if group["frozen"] is None}


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_a_width_is_the_network_built_by_hand(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = enliven_(kind().double(), X)
    giant = widen(network, X, factors=(1, 1.5, 2), inner=(1, 1.5, 2)).train()
    assert grown(giant)
    for value in giant.parameters():
        value.data.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=value.dtype))
    sizes = NETWORKS[kind]
    for width in ("random", "random", "widest"):
        giant.zero_grad()
        with at_width(giant, width, rng=random.Random(len(width))):
            built = kind(*sizes(giant)).double().train()
            shown = widths_of(giant).shown
            built.load_state_dict({key: read(giant, key).detach() for key in built.state_dict()})
            wanted, got = built(X), giant(X)
            assert relative_error(got, wanted) <= 1e-12
            wanted.square().sum().backward()
            got.square().sum().backward()
        for name, value in built.named_parameters():
            whole = gradient(giant, name)
            part = whole
            for dim, places in shown.get(name, {}).items():
                part = part.narrow(dim, 0, places) if isinstance(places, int) else part.index_select(dim, places)
            assert relative_error(part, value.grad) <= 1e-12, name
            assert whole.square().sum() == pytest.approx(float(value.grad.square().sum()), rel=1e-9)
    assert sizes(giant) == sizes(network)
    tiny = nbcompile.fuse(giant)
    assert vars(tiny).get("kept") == vars(network).get("kept")
    assert torch.equal(tiny(X), giant.eval()(X))


@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind is not Tokens], ids=lambda kind: kind.__name__)
def test_and_before_it_is_trained_it_is_the_original(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = enliven_(kind().double(), X)
    giant, wanted = widen(network, X), network(X)
    assert torch.equal(giant(X), wanted)
    for seed in range(3):
        with at_width(giant, "random", rng=random.Random(seed)):
            assert relative_error(giant(X), wanted) <= 1e-12


def test_what_grows() -> None:
    def frozen(kind: type[nn.Module]) -> dict[str, str]:
        groups = width_groups(widen(kind().double(), X))
        return {name: group["frozen"] for name, group in groups.items() if group["frozen"]}

    assert [set(frozen(kind)) for kind in NETWORKS if kind is not Tokens] == [{"head.weight"}] * 9
    assert {*frozen(Tokens)} == {"mix.weight", "head.weight"}
    assert frozen(Tokens)["mix.weight"].startswith("'linear' mixes places with it at ")
