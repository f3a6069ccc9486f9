"""Giants in width: what they are at their own width, at others, and what fuse gives back."""

import copy
import random
import warnings
from collections.abc import Iterator
from itertools import count

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nbcompile
from nbcompile.core.errors import PreconditionError, UsageError
from nbcompile.core.numerics import relative_error
from nbcompile.testing import enliven_, scramble_
from nbcompile.widening import at_width, widen, width_groups

X = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Block(nn.Module):
    """An inverted residual with a gate."""

    def __init__(self, channels: int, hidden: int, gate: int = 3) -> None:
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.depth, self.norm2 = nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden)
        self.gate = Gate(hidden, gate)
        self.project, self.norm3 = nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.norm1(self.expand(x)))
        return x + self.norm3(self.project(self.gate(F.relu6(self.norm2(self.depth(y))))))


class Residual(nn.Module):
    """A stem, two blocks, a head."""

    def __init__(self, stem: int = 4, hidden: tuple[int, int] = (8, 6), gate: tuple[int, int] = (3, 3)) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, stem, 3, 2, 1), nn.BatchNorm2d(stem)
        self.blocks = nn.Sequential(*(Block(stem, h, g) for h, g in zip(hidden, gate, strict=True)))
        self.head = nn.Linear(stem, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.norm(self.stem(x)).relu()).mean((2, 3)))


class Joined(nn.Module):
    """A concatenation, and halves of a chunk that go their own ways, one flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 6, 1)
        self.norm, self.slopes = nn.BatchNorm2d(8), nn.PReLU(6)
        self.head = nn.Linear(3 * 7 * 5 + 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(torch.cat([self.a(x), self.b(x)], 1))
        y = self.slopes(self.c(y))
        one, other = y.chunk(2, 1)
        return self.head(torch.cat([one.flatten(1), other.mean((2, 3))], 1))


class Grouped(nn.Module):
    """Groups of two channels, a layer that two share, a scale for each channel, a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.groups, self.twice = (
            nn.Conv2d(3, 6, 1),
            nn.Conv2d(6, 9, 3, padding=1, groups=3),
            nn.Conv2d(9, 9, 1),
        )
        self.scale = nn.Parameter(torch.rand(1, 9, 1, 1) + 0.5)
        self.up, self.head = nn.ConvTranspose2d(9, 4, 2, 2), nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.groups(self.a(x).relu()).relu()
        y = self.twice(self.twice(y).relu()) * self.scale
        return self.head(self.up(y).relu())


NETWORKS = [Residual, Joined, Grouped]


def made(kind: type[nn.Module], **options: object) -> nn.Module:
    torch.manual_seed(0)
    network = kind(**options).double()
    enliven_(network, X)
    return network.eval()


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return made(request.param)


def test_it_is_the_network_at_its_own_width(network: nn.Module) -> None:
    giant = widen(network, X)
    assert isinstance(giant, type(network))
    assert sum(p.numel() for p in giant.parameters()) > sum(p.numel() for p in network.parameters())
    network.train(), giant.train()
    wanted, got = network(X), giant(X)
    assert torch.equal(got, wanted)
    wanted.square().sum().backward()
    got.square().sum().backward()
    for module, wide in zip(network.modules(), nbcompile.fuse(giant).modules(), strict=True):
        assert type(module) is type(wide)
    parts = {name: value for name, value in giant.named_parameters() if "parametrizations" in name}
    assert parts
    for name, value in parts.items():
        wanted = network.get_parameter(name.replace("parametrizations.", "").removesuffix(".original")).grad
        assert value.grad.square().sum() == pytest.approx(float(wanted.square().sum()))


def test_the_function_stays_at_every_width(network: nn.Module) -> None:
    giant, rng = widen(network, X), random.Random(0)
    assert [group for group in width_groups(giant).values() if group["frozen"] is None]
    wanted = network(X)
    for width in ("widest", "random", "random", "random-inner", "own"):
        with at_width(giant, width, rng=rng):
            assert relative_error(giant(X), wanted) < 1e-12
        assert torch.equal(giant(X), wanted)


def test_no_output_is_the_wrong_one_at_a_width(network: nn.Module) -> None:
    """With new inputs that are not 0, another width is another function: the zeros above did something."""
    giant = widen(network, X)
    for module in giant.modules():
        for parameter in module.parameters(recurse=False):
            parameter.data.add_(torch.rand_like(parameter))
    own = giant(X)
    with at_width(giant, "widest"):
        assert relative_error(giant(X), own) > 1e-3


@pytest.mark.parametrize("factor", [1.5, 2.0])
def test_a_width_is_the_network_built_by_hand(factor: float) -> None:
    """Outputs and gradients, in train mode; all numbers of the wide tensors are drawn."""
    giant = widen(made(Residual), X, factors=(1, 2), inner=(1, 2)).train()
    for value in giant.parameters():
        value.data.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=value.dtype))
    chosen = {name: factor for name, group in width_groups(giant).items() if group["frozen"] is None}
    with at_width(giant, chosen):
        stem, hidden = giant.stem.weight.shape[0], tuple(block.depth.weight.shape[0] for block in giant.blocks)
        gates = tuple(block.gate.down.weight.shape[0] for block in giant.blocks)
        assert (stem, hidden) == (4 * factor, (8 * factor, 6 * factor))
        built = Residual(stem, hidden, gates).double().train()
        built.load_state_dict({k: value.detach() for k in built.state_dict() if (value := read(giant, k)) is not None})
        wanted, got = built(X), giant(X)
        assert relative_error(got, wanted) == 0
        wanted.square().sum().backward()
        got.square().sum().backward()
    for name, value in built.named_parameters():
        part = gradient(giant, name)
        block = part[tuple(slice(0, n) for n in value.shape)]  # nothing is concatenated: the beginning
        assert relative_error(block, value.grad) < 1e-12
        assert part.square().sum() == pytest.approx(float(value.grad.square().sum()))


def read(model: nn.Module, key: str) -> Tensor:
    path, _, name = key.rpartition(".")
    value: Tensor = getattr(model.get_submodule(path), name)
    return value


def gradient(model: nn.Module, key: str) -> Tensor:
    path, _, name = key.rpartition(".")
    module = model.get_submodule(path)
    wide = (
        module.parametrizations[name].original if name in getattr(module, "parametrizations", {}) else read(model, key)
    )
    return wide.grad


def test_statistics_are_kept_apart() -> None:
    network = made(Residual).train()
    giant = widen(network, X)
    before = {name: value.clone() for name, value in network.named_buffers()}
    with at_width(giant, "widest"):
        giant(X)
    assert all(torch.equal(giant.get_buffer(name), value) for name, value in before.items() if "running" in name)
    wide = giant.norm.wide_running_mean
    assert wide.shape == (10,)
    assert not torch.equal(wide[:4], giant.norm.running_mean)
    network(X), giant(X)
    assert all(torch.equal(giant.get_buffer(n), v) for n, v in network.named_buffers() if "running" in n)


def test_fuse_gives_the_original_back(network: nn.Module) -> None:
    giant = widen(network, X)
    with at_width(giant, "widest"):
        giant(X).sum().backward()
    for parameter in giant.parameters():
        parameter.data.sub_(0.01)
    tiny = nbcompile.fuse(giant)
    assert type(tiny) is type(network)
    assert torch.equal(tiny(X), giant(X))
    network.load_state_dict(tiny.state_dict(), strict=True)
    assert {k: v.shape for k, v in tiny.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}
    assert nbcompile.cost(tiny, X) == nbcompile.cost(network, X)
    assert torch.equal(giant(X), tiny(X))  # the giant is still one
    with at_width(giant, "widest"):
        giant(X)


def test_in_depth_and_in_width() -> None:
    network = made(Residual)
    deep = nbcompile.expand(network, X, where=["blocks.0.expand", "blocks.1.project"], ratio=2)
    scramble_(deep, seed=1)
    both = widen(deep.eval(), X)
    assert torch.equal(both(X), deep(X))
    for block in (both.get_submodule("blocks.0.expand"), both.get_submodule("blocks.1.project")):
        block.slope.fill_(1)
    tiny = nbcompile.fuse(both)
    assert type(tiny) is Residual
    assert relative_error(tiny(X), both(X)) < 1e-12
    network.load_state_dict(tiny.state_dict(), strict=True)


def test_copies_and_state_dicts_go_on() -> None:
    """Of an EMA, a checkpoint and a run that is resumed."""
    giant = widen(made(Residual), X)
    for parameter in giant.parameters():
        parameter.data.mul_(0.9)
    again = widen(made(Residual), X)
    again.load_state_dict(giant.state_dict(), strict=True)
    ema = copy.deepcopy(giant)
    for other in (again, ema):
        for width in ("own", "widest"):
            with at_width(other, width), at_width(giant, width):
                assert torch.equal(other(X), giant(X))
    with at_width(ema, "widest"):
        assert ema.stem.weight.shape[0] == 10
        assert giant.stem.weight.shape[0] == 4


def test_the_caller_s_model_is_left_alone(network: nn.Module) -> None:
    before = copy.deepcopy(network.state_dict())
    widen(network.train(), X)
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class Odd(nn.Module):
    """What keeps its number: the image, a size that is written in the code, the output, what is sorted."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.viewed, self.sorted = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.viewed(self.free(x).relu())
        y = y.view(x.shape[0], 2, 3, 7, 5).transpose(1, 2).reshape(x.shape[0], 6, 7, 5)
        return self.head(self.sorted(y).sort(1)[0])


def test_what_is_not_understood_keeps_its_number_and_says_why() -> None:
    groups = width_groups(widen(made(Odd), X))
    assert groups["free.weight"]["frozen"] is None
    assert groups["viewed.weight"]["frozen"].startswith("at another width RuntimeError: shape '[2, 2, 3, 7, 5]'")
    assert "'sort' is not understood at" in groups["sorted.weight"]["frozen"]
    assert f"{__file__}:" in groups["sorted.weight"]["frozen"]
    assert groups["head.weight"]["frozen"] == "the network's output has it"
    assert groups["free.weight"]["channels"] == 4
    assert groups["free.weight"]["factors"] == (1.0, 1.8, 2.6)
    assert groups["head.weight"]["factors"] == (1.0,)


class Written(nn.Module):
    """Channels that are written into others, as far as there are some."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.a(x).relu(), self.b(x)
        y[:, -1] = z[:, 0]
        return self.head(y)


def test_what_is_written_into_keeps_its_number() -> None:
    with pytest.raises(
        PreconditionError, match=r"'a.weight': '__setitem__' is not understood at .*; 'b.weight': '__set"
    ):
        widen(made(Written), X)


def test_inner_and_crossing_groups() -> None:
    groups = width_groups(widen(made(Residual), X))
    assert {name for name, group in groups.items() if group["inner"]} == {
        f"blocks.{n}.{part}.weight" for n in (0, 1) for part in ("expand", "gate.down")
    }
    assert groups["stem.weight"]["factors"] == (1.0, 1.8, 2.6)
    assert groups["blocks.0.expand.weight"]["factors"] == (1.0, 1.6, 2.2, 2.8)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"factors": (1, 0.5)}, r"^factors must be numbers from 1 to 64, not 1, 0.5$"),
        ({"inner": (1, float("nan"))}, r"^inner must be numbers from 1 to 64, not 1, nan$"),
        ({"factors": (2, 3)}, r"^1 must be among factors: the original is one of the widths that are drawn$"),
        ({"factors": ()}, r"^1 must be among factors"),
    ],
)
def test_refuses_factors(options: dict[str, tuple[float, ...]], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        widen(made(Residual), X, **options)


def test_refuses_what_cannot_grow() -> None:
    with pytest.raises(
        PreconditionError, match=r"^widen: nothing of Conv2d can be widened: 'weight': the network's out"
    ):
        widen(nn.Conv2d(3, 4, 1), X.float())
    with pytest.raises(PreconditionError, match=r"^widen: nothing of Residual can be widened: no factor makes"):
        widen(made(Residual), X, factors=(1,), inner=(1,))


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * (2 if x.sum().item() > 0 else 3)


def test_refuses_what_reads_values() -> None:
    with pytest.raises(
        PreconditionError, match=r"^widen: the channels of Reads cannot be followed: it does not run with"
    ):
        widen(Reads().double(), X)


class Turns(nn.Module):
    """Other channels at every call of any copy: nothing that is found in one run holds in the next."""

    calls = count()

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).roll(next(self.calls) % 5, 1))


def test_a_network_that_never_does_the_same_comes_to_an_end() -> None:
    with pytest.raises(PreconditionError, match=r"^widen: (nothing|the channels) of Turns can"):
        widen(Turns().double(), X)


def test_refuses_widths() -> None:
    network = made(Residual)
    giant = widen(network, X)
    for model, width, sentence in [
        (network, "widest", r"^at_width: Residual is no giant in width; make one with widen$"),
        (giant, "wide", r"^at_width: 'wide' is no width; random, random-inner, widest, own, or factors by group$"),
        (giant, {"stem": 2.0}, r"^at_width: 'stem' is no group of channels; width_groups\(giant\) lists them$"),
        (giant, {"stem.weight": 9.0}, r"^at_width: 'stem.weight' goes from 1 to 2.6, not to 9$"),
        (giant, {"head.weight": 2.0}, r"^at_width: 'head.weight' goes from 1 to 1, not to 2$"),
    ]:
        with pytest.raises(UsageError, match=sentence), at_width(model, width):
            pass
    with pytest.raises(UsageError, match=r"^width_groups: Residual is no giant in width; make one with widen$"):
        width_groups(network)
    with pytest.raises(UsageError, match=r"^widen: the network is a giant in width already$"):
        widen(giant, X)
    with at_width(giant, "widest"):
        with (
            pytest.raises(UsageError, match=r"^at_width: the network is at another width; leave that first$"),
            at_width(giant),
        ):
            pass
        with pytest.raises(UsageError, match=r"^the network is at another width: leave at_width first$"):
            nbcompile.fuse(giant)
    assert torch.equal(giant(X), network(X))


def test_an_error_inside_leaves_the_original_s_width() -> None:
    network = made(Residual)
    giant = widen(network, X)
    with pytest.raises(ZeroDivisionError), at_width(giant, "widest"):
        _ = 1 / 0
    assert torch.equal(giant(X), network(X))


def test_nan_in_its_own_part_and_in_the_rest() -> None:
    network = made(Residual)
    giant = widen(network, X)
    wide = giant.stem.parametrizations.weight.original
    wide.data[9, 0, 0, 0] = float("nan")
    assert torch.equal(nbcompile.fuse(giant)(X), network(X))  # it is dropped
    wide.data[1, 0, 0, 0] = float("nan")
    with pytest.raises(PreconditionError, match=r"^fuse: 'stem.weight' is not finite \(NaN or infinite\)$"):
        nbcompile.fuse(giant)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
