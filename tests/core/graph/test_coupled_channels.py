"""Junctions: a factor per channel taken out of all that write one and put into all that read it changes nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from nbcompile.core.graph.coupled_channels import GIVEN_OUT, Junction, Reader, junctions
from nbcompile.core.graph.factors import Clip, clip_of, why_fixed
from nbcompile.core.graph.nodes import calls
from nbcompile.core.graph.shapes import Shapes
from nbcompile.core.numerics import relative_error
from nbcompile.core.tracing.capture import capture
from nbcompile.testing import scramble_

Forward = Callable[[Any, Tensor], Any]
X = torch.randn(2, 4, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
FACTORS = torch.tensor([0.25, 3.0, 1.5, 0.5, 7.0, 0.125], dtype=torch.float64)


class Written(nn.Module):
    """A network as a function of its layers: ``a`` gives six channels, ``b`` to ``d`` keep them, ``z`` reads them."""

    def __init__(self, forward: Forward, **layers: nn.Module) -> None:
        super().__init__()
        self.a, self.z = nn.Conv2d(4, 6, 3), nn.Conv2d(6, 5, (3, 1), padding=(1, 0))
        self.b, self.c = nn.Conv2d(6, 6, 3, padding=1, groups=3), nn.Conv2d(6, 6, 1)
        self.d = nn.ConvTranspose2d(6, 6, 3, padding=1, groups=2)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.written = forward
        scramble_(self).double().eval()

    def forward(self, x: Tensor) -> Any:
        return self.written(self, x)


def found(forward: Forward, x: Tensor = X, **layers: nn.Module) -> tuple[fx.GraphModule, tuple[Junction, ...]]:
    gm = capture(Written(forward, **layers), 1)
    return gm, junctions(gm, Shapes(gm, (x,)))


def scale(gm: fx.GraphModule, junction: Junction, factors: Tensor) -> None:
    """Divide what is written by ``factors``, and multiply what is read."""
    with torch.no_grad():
        for name in junction.writers:
            layer: Any = gm.get_submodule(name)
            _outputs(layer).div_(factors.view(*_shape(layer, len(factors))))
            if layer.bias is not None:
                layer.bias /= factors
        for reader in junction.readers:
            layer = gm.get_submodule(reader.name)
            inputs = factors.repeat_interleave(reader.repeats)
            groups = getattr(layer, "groups", 1)
            if isinstance(layer, nn.ConvTranspose2d):
                layer.weight *= inputs.view(-1, 1, 1, 1)
                continue
            for rows, part in zip(layer.weight.tensor_split(groups), inputs.tensor_split(groups), strict=True):
                rows *= part.view(1, -1, *(1,) * (layer.weight.ndim - 2))


def _outputs(layer: Any) -> Tensor:
    """The weight with all output channels in its first dimension, or in its first two."""
    weight: Tensor = layer.weight
    if not isinstance(layer, nn.ConvTranspose2d):
        return weight
    return weight.view(layer.groups, -1, *weight.shape[1:]).transpose(1, 2)


def _shape(layer: Any, channels: int) -> tuple[int, ...]:
    if isinstance(layer, nn.ConvTranspose2d):
        return layer.groups, channels // layer.groups, 1, 1, 1
    return channels, *(1,) * (layer.weight.ndim - 1)


def outputs(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.cat([v.flatten() for v in value])


def check(gm: fx.GraphModule, every: tuple[Junction, ...], x: Tensor) -> int:
    """How many junctions can be scaled; each of them is, and the network gives what it gave."""
    before = outputs(gm(x.clone()))
    free = [one for one in every if one.refused is None]
    for one in free:
        scale(gm, one, FACTORS[: one.channels] if one.channels <= 6 else torch.rand(one.channels).double() + 0.5)
    assert relative_error(outputs(gm(x.clone())), before) < 1e-12
    return len(free)


PASSING: dict[str, Forward] = {
    "relu": lambda m, y: F.relu(y),
    "leaky relu": lambda m, y: F.leaky_relu(y, 0.2),
    "leaky module": lambda m, y: m.leaky(y),
    "prelu of all": lambda m, y: m.prelu(y),
    "prelu per channel": lambda m, y: m.prelus(y),
    "clamp from zero": lambda m, y: y.clamp(min=0),
    "dropout": lambda m, y: F.dropout(y, training=m.training),
    "contiguous": lambda m, y: y.contiguous(),
    "max pool": lambda m, y: F.max_pool2d(y, 3, 2, 1),
    "average pool": lambda m, y: m.pool(y),
    "average pool 2": lambda m, y: F.avg_pool2d(y, (2, 3), padding=1, count_include_pad=False),
    "adaptive average": lambda m, y: F.adaptive_avg_pool2d(y, (3, 2)),
    "adaptive maximum": lambda m, y: m.adaptive(y),
    "adaptive maximum 2": lambda m, y: F.adaptive_max_pool2d(y, 3),
    "interpolate": lambda m, y: F.interpolate(y, scale_factor=2.0),
    "upsample": lambda m, y: m.up(y),
    "zero padding": lambda m, y: m.zeros(y),
    "constant padding by zero": lambda m, y: m.constant(y),
    "reflection": lambda m, y: m.reflect(y),
    "replication": lambda m, y: m.replicate(y),
    "circular": lambda m, y: m.circular(y),
    "pad": lambda m, y: F.pad(y, (1, 0, 2, 1)),
    "pad one axis": lambda m, y: F.pad(y, (1, 2), "constant", 0),
    "pad by name": lambda m, y: F.pad(y, pad=(1, 2, 0, 0), mode="constant", value=0.0),
    "pad with None": lambda m, y: F.pad(y, (1, 1), value=None),
    "pad by reflection": lambda m, y: F.pad(y, (1, 1, 2, 2), "reflect"),
    "pad by replication": lambda m, y: F.pad(y, (1, 1, 2, 2), mode="replicate", value=0.0),
    "mean of maps": lambda m, y: y.mean((2, 3), keepdim=True),
    "mean along one axis": lambda m, y: y.mean(3, True),
    "mean from the end": lambda m, y: torch.mean(y, dim=(-1, -2), keepdim=True),
    "asking for a shape": lambda m, y: F.interpolate(y, size=(2 * y.shape[2], y.size(3))),
    "sum": lambda m, y: y + m.b(y),
    "sum by method": lambda m, y: y.add(m.b(F.relu(y))),
    "sum with alpha": lambda m, y: torch.add(y, m.d(y), alpha=-3),
    "sum in place": lambda m, y: m.c(y).add_(m.b(y)),
    "sum of sums": lambda m, y: m.c(y) + (y + m.b(y)),
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "leaky": lambda: nn.LeakyReLU(0.3),
    "prelu": nn.PReLU,
    "prelus": lambda: nn.PReLU(6),
    "pool": lambda: nn.AvgPool2d(3, 2),
    "adaptive": lambda: nn.AdaptiveMaxPool2d(2),
    "up": lambda: nn.Upsample(scale_factor=2),
    "zeros": lambda: nn.ZeroPad2d((1, 0, 2, 1)),
    "constant": lambda: nn.ConstantPad2d(1, 0),
    "filled": lambda: nn.ConstantPad2d(1, 0.5),
    "reflect": lambda: nn.ReflectionPad2d(1),
    "replicate": lambda: nn.ReplicationPad2d((1, 2, 0, 1)),
    "circular": lambda: nn.CircularPad2d(1),
}


def layers() -> dict[str, nn.Module]:
    return {name: build() for name, build in LAYERS.items()}


@pytest.mark.parametrize("name", PASSING)
def test_factors_pass_through(name: str) -> None:
    rule = PASSING[name]
    gm, every = found(lambda m, x: m.z(rule(m, m.a(x))), **layers())
    assert {one.refused for one in every} == {None}
    assert {(one.channels, len(one.clips)) for one in every} == {(6, 0)}
    assert "a" in every[0].writers
    assert Reader("z", 1) in every[-1].readers
    assert check(gm, every, X) == len(every) == (2 if name == "sum in place" else 1)


REFUSED: dict[str, tuple[Forward, str]] = {
    "silu": (lambda m, y: F.silu(y), "'silu' reads it and takes no factors"),
    "sigmoid": (lambda m, y: y.sigmoid(), "'sigmoid' reads it and takes no factors"),
    "clamp from below zero": (lambda m, y: y.clamp(min=-0.1), "'clamp' reads it and takes no factors"),
    "dropout that is on": (lambda m, y: F.dropout(y, 0.0, True), "'dropout' reads it and takes no factors"),
    "padding with a value": (lambda m, y: m.filled(y), "'filled' reads it and takes no factors"),
    "pad with a value": (lambda m, y: F.pad(y, (1, 1), value=0.5), "'pad' reads it and takes no factors"),
    "padded channels": (
        lambda m, y: F.pad(y, (0, 0, 0, 0, 1, 2))[:, 1:7],
        "'pad' reads it and takes no factors",
    ),
    "padded batch": (
        lambda m, y: F.pad(y, (0, 0, 0, 0, 0, 0, 1, 0)),
        "'pad' reads it and takes no factors",
    ),
    "mean of channels": (lambda m, y: y - y.mean(1, keepdim=True), "'mean' reads it and takes no factors"),
    "mean of channels, from the end": (lambda m, y: y + y.mean(dim=-3, keepdim=True), "'mean' reads it and takes"),
    "mean of both": (lambda m, y: y + y.mean((1, 2), keepdim=True), "'mean' reads it and takes no factors"),
    "mean of all": (lambda m, y: y + y.mean(), "'mean' reads it and takes no factors"),
    "mean of the batch": (lambda m, y: y + y.mean(0), "'mean' reads it and takes no factors"),
    "a number added": (lambda m, y: y + 1, "'add' reads it and takes no factors"),
    "a product": (lambda m, y: y * y.relu(), "'mul' reads it and takes no factors"),
    "a smaller term": (lambda m, y: y + F.adaptive_avg_pool2d(y, 1), None),
    "itself twice": (lambda m, y: y + y, "'add' reads it and takes no factors"),
    "a difference": (lambda m, y: y - m.b(y), "'sub' reads it and takes no factors"),
    "a slice": (lambda m, y: torch.cat([y[:, 3:], y[:, :3]], 1), "'getitem' reads it and takes no factors"),
    "a permutation": (lambda m, y: y.permute(0, 1, 3, 2), "'permute' reads it and takes no factors"),
    "a softmax": (lambda m, y: y.softmax(1), "'softmax' reads it and takes no factors"),
    "a norm": (lambda m, y: m.norm(y), "'norm' reads it and takes no factors"),
    "a norm of groups": (lambda m, y: F.group_norm(y, 2), "'group_norm' reads it and takes no factors"),
    "a view that is not flat": (lambda m, y: y.view(2, 3, 2, -1).view(y.shape), "'view' reads it and takes no factors"),
}  # fmt: skip
"""A None where the factors do pass: a term of another size is no matter."""


@pytest.mark.parametrize("name", REFUSED)
def test_factors_do_not_pass(name: str) -> None:
    rule, reason = REFUSED[name]
    gm, every = found(lambda m, x: m.z(rule(m, m.a(x))), norm=nn.BatchNorm2d(6), **layers())
    first = next(one for one in every if "a" in one.writers)
    if reason is None:
        assert first.refused is None
    else:
        assert first.refused is not None
        assert first.refused.startswith(reason)
    check(gm, every, X)


@pytest.mark.parametrize(
    ("forward", "last", "repeats"),
    [
        (lambda m, y: m.flat(F.relu(y).flatten(1)), nn.Linear(6 * 35, 3), 35),
        (lambda m, y: m.flat(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1)), nn.Linear(6, 3), 1),
        (lambda m, y: m.flat(y.mean((2, 3))), nn.Linear(6, 3), 1),
        (lambda m, y: m.flat(y.view(y.size(0), -1)), nn.Linear(6 * 35, 3), 35),
        (lambda m, y: m.flat(torch.reshape(y, (2, 6 * 35))), nn.Linear(6 * 35, 3), 35),
        (lambda m, y: m.flat(F.adaptive_max_pool2d(y, 1).squeeze()), nn.Linear(6, 3), 1),
        (lambda m, y: m.flat(m.flatten(F.max_pool2d(y, 2)).relu()), nn.Linear(6 * 6, 3), 6),
        # tokens: the channels are the last axis
        (lambda m, y: m.flat(F.relu(m.token(y))), nn.Linear(6, 3), 1),
    ],
)
def test_linear_layers_behind_maps(forward: Forward, last: nn.Module, repeats: int) -> None:
    """A channel of a flattened map is as many features in a row."""
    gm, every = found(lambda m, x: forward(m, m.a(x)), flat=last, token=nn.Linear(5, 6), flatten=nn.Flatten())
    one = every[-1]
    assert (one.refused, one.readers, one.channels) == (None, [Reader("flat", repeats)], 6)
    assert check(gm, every, X) >= 1


def test_what_is_flattened_can_be_summed_only_with_its_like() -> None:
    like = lambda m, y: m.flat(y.flatten(1) + F.relu(m.c(y)).flatten(1))  # noqa: E731
    gm, (one,) = found(lambda m, x: like(m, m.a(x)), flat=nn.Linear(6 * 35, 3))
    assert (one.writers, one.readers) == (["a", "c"], [Reader("c", 1), Reader("flat", 35)])
    assert check(gm, (one,), X) == 1
    # six features of one channel each, beside six of a linear layer that are channels themselves
    unlike = lambda m, y: m.flat(y.mean((2, 3)) + m.other(y.flatten(1)))  # noqa: E731
    gm, every = found(lambda m, x: unlike(m, m.a(x)), flat=nn.Linear(6, 3), other=nn.Linear(6 * 35, 6))
    assert [one.writers for one in every] == [["a", "other"]]
    assert check(gm, every, X) == 1
    mixed = lambda m, y: m.flat(y[:, :, 0] + m.token(y.mean(3)))  # noqa: E731
    gm, every = found(lambda m, x: mixed(m, m.a(x)), flat=nn.Linear(5, 3), token=nn.Linear(7, 5))
    assert [one.refused for one in every if one.refused]
    check(gm, every, X)
    wide = lambda m, y: m.flat(y.flatten(1) + m.other(y.flatten(1)))  # noqa: E731
    gm, every = found(lambda m, x: wide(m, m.a(x)), flat=nn.Linear(210, 3), other=nn.Linear(210, 210))
    assert [one.refused for one in every] == ["'add' reads it and takes no factors"] * 2
    check(gm, every, X)


@pytest.mark.parametrize(
    ("forward", "refused"),
    [
        (lambda m, x: m.z(m.a(x) * m.gate(m.c(m.a2(x)).mean((2, 3), keepdim=True))), {"c": "'gate' reads it"}),
        (lambda m, x: m.z(torch.sigmoid(m.c(m.a2(x))) * m.a(x)), {"c": "'sigmoid' reads it and takes no factors"}),
        (lambda m, x: m.z(F.hardsigmoid(m.c(m.a2(x))) * m.a(x)), {"c": "'hardsigmoid' reads it and takes"}),
        # what the gate would make larger keeps no factor of its own
        (
            lambda m, x: m.z(m.a(x).mean((2, 3), keepdim=True) * m.c(m.a2(x)).sigmoid()),
            {"a": "'mul' reads it", "c": "'sigmoid' reads it"},
        ),
        (lambda m, x: m.z(m.a(x).sigmoid() * m.c(m.a2(x)).sigmoid()), {"a": "'sigmoid' reads it", "c": "'sigmoid_1'"}),
    ],
)  # fmt: skip
def test_gates(forward: Forward, refused: dict[str, str]) -> None:
    gm, every = found(forward, a2=nn.Conv2d(4, 6, 3), gate=nn.Hardsigmoid())
    reasons = {one.writers[0]: one.refused for one in every if one.refused}
    assert set(reasons) == set(refused)
    assert all(str(reasons[name]).startswith(reason) for name, reason in refused.items())
    assert check(gm, every, X) == len(every) - len(refused)


class Unbatched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.z = nn.Conv2d(4, 6, 3).double(), nn.Conv2d(6, 5, 1).double()
        self.p, self.q = nn.Linear(5, 6).double(), nn.Linear(6, 2).double()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.z(self.a(x[0])), self.q(self.p(x[0, 0, 0, :5]))


def reasons(forward: Forward, **layers: nn.Module) -> dict[str, str | None]:
    _, every = found(forward, **layers)
    return {one.writers[0]: one.refused for one in every}


def hooked() -> nn.Module:
    layer = nn.Conv2d(6, 6, 1)
    layer.register_forward_hook(lambda *_: None)
    return layer


def tied() -> dict[str, nn.Module]:
    one, other = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
    other.weight = one.weight
    return {"one": one, "other": other}


def test_layers_whose_weights_are_not_theirs_alone() -> None:
    reads = "reads it and takes no factors"
    twice = lambda m, x: m.z(m.c(m.c(m.a(x))))  # noqa: E731
    assert reasons(twice) == {"a": f"'c' {reads}: it is called 2 times"}
    sized = lambda m, x: m.z(m.d(m.a(x), output_size=(7, 5)))  # noqa: E731
    assert reasons(sized) == {"a": f"'d' {reads}: it is called with an output size"}
    tie = lambda m, x: m.z(m.one(m.a(x))) + m.z2(m.other(m.a2(x)))  # noqa: E731
    assert reasons(tie, **tied(), z2=nn.Conv2d(6, 5, 1), a2=nn.Conv2d(4, 6, 3)) == {
        "a": f"'one' {reads}: it shares a parameter with 'other.weight'",
        "a2": f"'other' {reads}: it shares a parameter with 'one.weight'",
    }
    read = lambda m, x: m.z(m.c(m.a(x))) + m.c.weight.sum()  # noqa: E731
    assert reasons(read)["a"] == f"'c' {reads}: other code reads its weight directly"
    hooks = "it carries hooks, which would be lost; remove them first"
    assert reasons(lambda m, x: m.z(m.c2(m.a(x))), c2=hooked()) == {"a": f"'c2' {reads}: {hooks}"}
    gm = capture(Unbatched(), 1)
    assert junctions(gm, Shapes(gm, (X,))) == ()
    gm, every = found(lambda m, x: (m.z(m.a(x)), m.a(x[:1])))
    assert every == ()


def test_why_a_layer_is_fixed() -> None:
    gm, _ = found(lambda m, x: m.z(m.c(m.a(x))) + m.c.bias.sum())
    layer = gm.get_submodule("c")
    (node,) = calls(gm)[layer]
    assert why_fixed(gm, node, layer) == "other code reads its weight directly"
    assert why_fixed(gm, node, nn.ReLU()) == "it is a ReLU, not a convolution or linear layer"
    a = gm.get_submodule("a")
    assert why_fixed(gm, calls(gm)[a][0], a) is None


def test_what_is_given_out_and_what_reads_another_axis() -> None:
    assert found(lambda m, x: m.a(x))[1] == ()  # nobody reads it, and a last layer is no matter
    _, (one,) = found(lambda m, x: let(m.a(x), lambda y: (m.z(y), y)))
    assert (one.writers, one.readers, one.refused) == (["a"], [Reader("z", 1)], GIVEN_OUT)
    rows = lambda m, x: (m.rows(m.c(m.a(x))), m.z(m.a2(x)))  # noqa: E731
    gm, every = found(rows, a2=nn.Conv2d(4, 6, 3), rows=nn.Linear(5, 5))
    said = {one.writers[0]: one.refused for one in every}
    assert said == {"a": None, "c": "'rows' reads another axis of it", "a2": None}
    assert check(gm, every, X) == 2
    _, (one,) = found(lambda m, x: let(m.a(x), lambda y: m.z(F.silu(y)) + m.z2(y.sigmoid())), z2=nn.Conv2d(6, 5, 1))
    assert one.refused == "'silu' reads it and takes no factors"  # the first that says so


def let(value: Any, then: Callable[[Any], Any]) -> Any:
    """A local name in a lambda."""
    return then(value)


CLIPS: list[tuple[nn.Module | Callable[[Tensor], Tensor], tuple[float, float] | None]] = [
    (nn.ReLU6(), (0, 6)),
    (nn.Hardtanh(), (-1, 1)),
    (nn.Hardtanh(0, 2.5, inplace=True), (0, 2.5)),
    (nn.Hardtanh(-3, 0.5), (-3, 0.5)),
    (F.relu6, (0, 6)),
    (lambda y: y.clamp(0, 6), (0, 6)),
    (nn.Hardtanh(0.5, 1), None),  # never zero: no factor but one
    (nn.Hardtanh(-2, -1), None),
    (nn.Hardtanh(-2, 0), None),
    (nn.ReLU(), None),
    (F.relu, None),
    (lambda y: y.clamp(0, 5), None),
    (F.hardtanh, None),
]


@pytest.mark.parametrize(("act", "bounds"), CLIPS)
def test_clips(act: Any, bounds: tuple[float, float] | None) -> None:
    layer = {"act": act} if isinstance(act, nn.Module) else {}
    gm, every = found(
        lambda m, x: m.z(m.c(m.a(x)) + (m.act(m.a2(x)) if layer else act(m.a2(x)))), a2=nn.Conv2d(4, 6, 3), **layer
    )
    (node,) = [n for n in gm.graph.nodes if n.name in ("act", "relu6", "clamp", "hardtanh", "relu")]
    clip = clip_of(gm, node)
    assert clip == (None if bounds is None else Clip(node.name, *bounds))
    one = next(one for one in every if "a2" in one.writers)
    assert one.clips == ([clip] if clip else [])
    if isinstance(act, nn.Hardtanh):
        act.register_forward_hook(lambda *_: None)
        assert clip_of(gm, node) is None


def test_what_is_tied_keeps_writers_readers_clips_and_reasons() -> None:
    """Whichever of the two values is the older one."""
    for swapped in (False, True):

        def forward(m: Any, x: Tensor, swapped: bool = swapped) -> Tensor:
            one, other = F.relu6(m.a(x)), m.act(m.a2(x))
            both = other + one if swapped else one + other
            z: Tensor = m.z(both) + m.z2(other) + m.z3(one) + (0 if swapped else other.sigmoid().mean())
            return z

        more = {"a2": nn.Conv2d(4, 6, 3), "z2": nn.Conv2d(6, 5, (3, 1), padding=(1, 0)), "z3": nn.Conv2d(6, 5, 1)}
        one = found(forward, act=nn.Hardtanh(-1, 2), **more)[1][0]
        assert sorted(one.writers) == ["a", "a2"]
        assert sorted(reader.name for reader in one.readers) == ["z", "z2", "z3"]
        assert sorted(clip.high for clip in one.clips) == [2, 6]
        assert one.refused == (None if swapped else "'sigmoid' reads it and takes no factors")
        assert one.channels == 6
