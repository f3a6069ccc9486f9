import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn import functional as F

from nbcompile.core.graph.channel_ranges import channel_ranges
from nbcompile.core.numerics import relative_error
from nbcompile.core.tracing.capture import capture
from nbcompile.deploy.deploy_form import deploy
from nbcompile.passes.base import PassResult
from nbcompile.passes.equalize import BALANCED, Equalize
from nbcompile.testing import check_pass, enliven_
from tests.slow import one_in

X = torch.randn(2, 4, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def uneven(model: nn.Module) -> nn.Module:
    """Float64, each output channel of each layer in another order of magnitude."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.double().eval().parameters():
            p.mul_(torch.exp(torch.randn(p.shape[0], *(1,) * (p.ndim - 1), generator=generator, dtype=p.dtype)))
    return model


def chain(*between: nn.Module, second: nn.Module | None = None, **first: Any) -> nn.Module:
    return uneven(nn.Sequential(nn.Conv2d(4, 6, 3, **first), *between, second or nn.Conv2d(6, 5, 3, padding=1)))


def run(model: nn.Module, x: Tensor = X) -> PassResult:
    return check_pass(Equalize((x,)), model, x)


@pytest.mark.parametrize(
    "model",
    [
        chain(nn.ReLU()),
        chain(),
        chain(nn.LeakyReLU(0.3), nn.Dropout(), stride=2),
        chain(nn.PReLU()),
        chain(nn.PReLU(6), bias=False),
        chain(nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)),
        chain(nn.AvgPool2d(2), nn.ReLU(), nn.ZeroPad2d((1, 0, 2, 1))),
        chain(nn.ReflectionPad2d(1), nn.Upsample(scale_factor=2)),
        chain(nn.ReLU(), padding=1, padding_mode="reflect", groups=2),
        chain(nn.ReLU(), second=nn.Conv2d(6, 6, 3, padding=1, groups=6, stride=2)),
        chain(nn.ReLU(), second=nn.Conv2d(6, 9, 3, padding=2, groups=3, dilation=2)),
        chain(nn.ReLU(), second=nn.ConvTranspose2d(6, 4, 3, 2, 1, 1, groups=2)),
        chain(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), second=nn.Linear(6, 3)),
        chain(nn.ReLU(), nn.Flatten(), nn.ReLU(), second=nn.Linear(6 * 7 * 5, 3)),
    ],
)
def test_balances_and_keeps_the_function(model: nn.Module) -> None:
    result = run(model)
    last = str(len(model) - 1)  # type: ignore[arg-type]
    assert (result.rewritten, result.skipped) == (("0", last), ())
    first, second = (result.gm.get_submodule(name) for name in ("0", last))
    rows = weights(first).flatten(1).amax(1)
    if isinstance(first.bias, Tensor):
        rows = torch.maximum(rows, 0.1 * first.bias.detach().abs())
    groups = getattr(second, "groups", 1)
    if isinstance(second, nn.ConvTranspose2d):
        columns = weights(second).flatten(1).amax(1)
    else:
        grouped = weights(second).flatten(2).amax(2) if weights(second).ndim > 2 else weights(second)
        columns = grouped.view(groups, -1, grouped.shape[1]).amax(1).view(6, -1).amax(1)
    assert float((rows / columns - 1).abs().max()) <= 2.1 * BALANCED


def weights(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach().abs()


class Block(nn.Module):
    """A residual sum, in one of the ways networks write it, around ``act``."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor] = torch.add) -> None:
        super().__init__()
        self.stem, self.tail = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 3, 1)
        self.a, self.b = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.add = add
        uneven(self)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        y = self.add(y, self.b(F.leaky_relu(self.a(y), 0.1)))
        z: Tensor = self.tail(F.relu(y))
        return z


def iadd(a: Tensor, b: Tensor) -> Tensor:
    a += b
    return a


@pytest.mark.parametrize("add", [torch.add, iadd, lambda a, b: a - b * 1])
def test_residual_sums_tie_their_terms(add: Callable[[Tensor, Tensor], Tensor]) -> None:
    result = run(Block(add))
    if add in (torch.add, iadd):
        assert set(result.rewritten) == {"stem", "b", "a", "tail"}
        assert not result.skipped
    else:
        assert set(result.rewritten) == {"a", "b"}
        assert {skip.name for skip in result.skipped} == {"stem", "b"}


class Squeeze(Block):
    """Squeeze and excite: what is multiplied by a sigmoid keeps its factors, the sigmoid none."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        gate = self.b(F.relu(self.a(y.mean((2, 3), keepdim=True)))).sigmoid()
        z: Tensor = self.tail(y * gate)
        return z


def test_gates() -> None:
    result = run(Squeeze())
    assert set(result.rewritten) == {"stem", "a", "tail", "b"}
    assert [(skip.name, skip.reason) for skip in result.skipped][:1] == [
        ("b", "'sigmoid' reads it and takes no factors")
    ]


class Concatenated(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        z: Tensor = self.tail(torch.cat([y[:, :3], y[:, 3:]], 1))
        return z


class Shifted(Block):
    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.tail(self.stem(x) + 1)
        return z


class Mean(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        z: Tensor = self.tail(y) + y.mean(1, keepdim=True)
        return z


class TermRefused(Block):
    """What ties two values hands the reason of one on to the other."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        v = self.b(self.a(y))
        gate = v.sigmoid()
        z: Tensor = self.tail(y + v) + gate.mean()
        return z


class Sequence(nn.Module):
    """Layers on tokens: the channels are the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(7, 6), nn.Linear(6, 4), nn.PReLU(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.act(F.relu(self.a(x))))
        return y


class OtherAxis(Sequence):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(7, 4)
        self.conv = nn.Conv2d(4, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(F.relu(self.conv(x)))
        return y


class Twice(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        z: Tensor = self.b(self.a(self.b(self.a(y))))
        return z


class Unbatched(Block):
    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.tail(self.stem(x[0]))
        return z


class GivenOut(Block):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y = F.relu(self.stem(x))
        return self.tail(y), y


def test_a_refusal_reaches_all_that_is_tied() -> None:
    result = run(TermRefused())
    first = result.skipped[0]
    assert (first.name, first.reason) == ("stem", "'sigmoid' reads it and takes no factors")
    assert set(result.rewritten) == {"a", "b"}


def test_maps_without_a_batch() -> None:
    assert not run(Unbatched()).modified


def test_tokens() -> None:
    assert set(run(uneven(Sequence())).rewritten) == {"a", "b"}


@pytest.mark.parametrize(
    ("model", "name", "reason"),
    [
        (chain(nn.SiLU()), "0", "'1' reads it and takes no factors"),
        (chain(nn.ReLU6()), "0", "'_1' clips at 6: which factors are safe shows only on calibration data"),
        (chain(nn.ConstantPad2d(1, 0.5)), "0", "'1' reads it and takes no factors"),
        (Shifted(), "stem", "'add' reads it and takes no factors"),
        (Mean(), "stem", "'mean' reads it and takes no factors"),
        (Concatenated(), "stem", "'getitem' reads it and takes no factors"),
        (uneven(OtherAxis()), "conv", "'b' reads another axis of it"),
        (Twice(), "stem", "'a' reads it and takes no factors: it is called 2 times"),
        (GivenOut(), "stem", "the network gives it out"),
    ],
)
def test_leaves_alone_and_says_why(model: nn.Module, name: str, reason: str) -> None:
    result = run(model)
    assert (name, reason) in [(skip.name, skip.reason) for skip in result.skipped], result.skipped
    assert not result.modified


def test_a_last_layer_is_no_matter() -> None:
    result = run(nn.Sequential(uneven(nn.Conv2d(4, 6, 3))))
    assert (result.rewritten, result.skipped) == ((), ())


def clipping(act: nn.Hardtanh) -> tuple[fx.GraphModule, Tensor]:
    """A network of which half of the channels reach the tighter bound."""
    model = chain(act, second=nn.Conv2d(6, 5, 1))
    first = next(model.children())
    with torch.no_grad():
        lows, highs = (-first(X)).amax((0, 2, 3)), first(X).amax((0, 2, 3))
        gain = act.max_val / highs.median() if not -act.max_val < act.min_val < 0 else -act.min_val / lows.median()
        for p in first.parameters():
            p *= gain
    return capture(model), X


@pytest.mark.parametrize(
    "act", [nn.ReLU6(), nn.ReLU6(inplace=True), nn.Hardtanh(-60, 5), nn.Hardtanh(-5, 60), nn.Hardtanh(0, 3)]
)
def test_through_a_clip_only_as_far_as_it_is_not_reached(act: nn.Hardtanh) -> None:
    gm, x = clipping(act)
    ranges = channel_ranges(gm, [(x,)])
    before = gm(x)
    result = Equalize((x,), ranges)(gm)
    assert result.rewritten == ("0", "2")
    assert relative_error(gm(x), before) <= 1e-12
    low, high = act.min_val, act.max_val
    seen = channel_ranges(gm, [(x,)])["_1"]
    was = ranges["_1"]
    reached = (was.high > high) | ((was.low < low) if low else torch.zeros_like(was.high, dtype=torch.bool))
    torch.testing.assert_close(seen.high[reached], was.high[reached])
    assert bool((seen.high[~reached] <= high * (1 + 1e-12)).all())
    assert bool(reached.any())
    assert not bool(reached.all())
    assert not Equalize((x,), channel_ranges(gm, [(x,)]))(gm).modified


def test_ranges_of_another_graph() -> None:
    gm, x = clipping(nn.ReLU6())
    result = Equalize((x,), {})(gm)
    assert [skip.reason for skip in result.skipped][:1] == [
        "'_1' clips at 6, and the ranges of its channels are not known"
    ]


def test_dead_channels_do_not_blow_their_bias_up() -> None:
    model = chain(nn.ReLU())
    with torch.no_grad():
        model[0].weight[0] = 1e-9  # type: ignore[index]
        model[0].weight[1] = 0  # type: ignore[index]
        model[0].bias[:3] = torch.tensor([1.0, 0.0, 1.0])  # type: ignore[index]
        model[2].weight[:, 2] = 0  # type: ignore[index]
    result = run(model)
    first = result.gm.get_submodule("0")
    assert isinstance(first, nn.Conv2d)
    bias = first.bias.detach() if first.bias is not None else torch.zeros(6)
    assert float(bias.abs().max()) < 50
    assert float(bias[2]) == 1


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(weights=None, width_mult=0.25),
    "mobilenet_v3": lambda: torchvision.models.mobilenet_v3_small(weights=None, width_mult=0.5),
    "resnet18": lambda: timm.create_model("test_resnet"),
    "shufflenet": lambda: torchvision.models.shufflenet_v2_x0_5(weights=None),
    "repvgg": lambda: timm.create_model("test_byobnet"),
    "vit": lambda: timm.create_model("test_vit"),
}


@pytest.mark.parametrize("name", one_in(3, NETWORKS))
def test_networks(name: str) -> None:
    size = 160 if name == "vit" else 65
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    graph = deploy(enliven_(NETWORKS[name]().double().eval(), x), (x,))
    assert isinstance(graph, fx.GraphModule)
    assert run(graph, x).modified is (name != "vit")
    ranges = channel_ranges(graph, [(x,)])
    with torch.no_grad():
        before = copy.deepcopy(graph)(x)
        Equalize((x,), ranges)(graph)
        assert relative_error(graph(x), before) <= 1e-12
