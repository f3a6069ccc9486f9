"""What a factor per channel passes through: each operator alone, between a layer that writes and one that reads."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbcompile.core.graph.coupled_channels import Reader
from nbcompile.core.graph.factors import Clip, clip_of, why_fixed
from nbcompile.core.graph.nodes import calls
from nbcompile.core.graph.owners import Owners
from tests.core.graph.scaled import Forward, X, check, found

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


def test_why_a_layer_is_fixed() -> None:
    gm, _ = found(lambda m, x: m.z(m.c(m.a(x))) + m.c.bias.sum())
    layer = gm.get_submodule("c")
    (node,) = calls(gm)[layer]
    assert why_fixed(Owners(gm), node, layer) == "other code reads its weight directly"
    assert why_fixed(Owners(gm), node, nn.ReLU()) == "it is a ReLU, not a convolution or linear layer"
    a = gm.get_submodule("a")
    assert why_fixed(Owners(gm), calls(gm)[a][0], a) is None
