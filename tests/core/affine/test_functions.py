from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbcompile.core.affine.primitive import Primitive
from nbcompile.core.affine.to_layer import to_layer
from nbcompile.core.algebra import NotExact
from tests.core.affine.lifts import X, last, primitive

Forward = Callable[[Any, Tensor], Any]
F4, F41 = torch.rand(4, dtype=torch.float64) + 0.5, torch.rand(4, 1, 1, dtype=torch.float64) + 0.5
W = torch.rand(4, 4, 3, 3, dtype=torch.float64)


def computed(one: Primitive, x: Tensor, axes: int = 2) -> Tensor:
    result: Tensor = to_layer(one.map(axes, x.shape[-axes - 1]), x)(x)
    return result


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: x * 3,
        lambda m, x: 2 / 4 * x,
        lambda m, x: m.f * x,
        lambda m, x: x / m.f,
        lambda m, x: x + m.f,
        lambda m, x: x - m.f,
        lambda m, x: m.f - x,
        lambda m, x: 1 - x,
        lambda m, x: torch.sub(x, m.f, alpha=2),
        lambda m, x: torch.sub(m.f, x, alpha=2),
        lambda m, x: torch.add(m.f, x, alpha=-2),
        lambda m, x: x.add(m.f, alpha=3),
        lambda m, x: -x,
        lambda m, x: x.neg(),
        lambda m, x: x.div(m.f),
        lambda m, x: torch.mul(input=x, other=m.f),
        lambda m, x: x * (m.f.flatten().view(-1, 1, 1) * 2).exp(),
    ],
)
def test_arithmetic(forward: Forward) -> None:
    one = primitive(forward, X, f=F41)
    expected = forward(type("M", (), {"f": F41}), X)
    torch.testing.assert_close(computed(one, X), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: 1 / x,
        lambda m, x: m.f / x,
        lambda m, x: torch.div(x, m.f, rounding_mode="floor"),
        lambda m, x: x / (m.f * 0),
        lambda m, x: x * True,
        lambda m, x: x * 2j,
        lambda m, x: x * m.f.bool(),
        lambda m, x: x * torch.ones(0, 1, 1),
        lambda m, x: torch.mul(x, m.f, out=x),
        lambda m, x: x * x,
        lambda m, x: F.conv2d(torch.ones(1, 4, 9, 9), x),  # of a constant, by what comes in
        lambda m, x: x[:, :2, :2, :1] * m.f.view(2, 2, 1),
        lambda m, x: x * m.f.view(1, 1, 4, 1, 1),
    ],
)
def test_what_is_no_map(forward: Forward) -> None:
    assert last(forward, X, f=F41) is None


def test_places_say_the_axes() -> None:
    shapes = {(4,): {0}, (4, 1): {1}, (1, 4, 1, 1): {2}, (4, 1, 1, 1): {3}, (1, 1): {0, 1, 2, 3}}
    for shape, axes in shapes.items():
        one = primitive(lambda m, x: x * m.f, X[:1, :, :4, :4], f=torch.rand(shape))
        assert set(one.axes) == axes
        assert (one.outer, one.constants) == ((True, 4) if len(axes) == 1 else (False, 0))


def test_a_factor_of_other_channels() -> None:
    with pytest.raises(NotExact, match=r"^'mul' stretches 3 channels to 4$"):
        primitive(lambda m, x: x * m.f, X, f=F41).geometry(2, 3)


def test_a_factor_that_adds_dimensions() -> None:
    forward = lambda m, x: x * m.f  # noqa: E731
    wide = F41[None]
    assert primitive(forward, X, f=wide).geometry(2, 4).outputs == 4
    with pytest.raises(NotExact, match=r"^'x' has fewer dimensions than the 4 of its factor$"):
        primitive(forward, X[0], f=wide).geometry(2, 4)
    unseen = lambda m, x: F.relu(x) * m.f  # noqa: E731
    with pytest.raises(NotExact, match=r"^'relu' cannot be seen to have 4 dimensions: fuse with an example_input$"):
        primitive(unseen, f=wide).geometry(2, 4)
    with pytest.raises(NotExact, match=r"^'norm' cannot be seen to have 5 dimensions: fuse with an example_input$"):
        primitive(lambda m, x: m.norm(x) * m.f, norm=nn.BatchNorm2d(4), f=wide[None][:, 0:1, :1, :, :]).geometry(2, 4)


@pytest.mark.parametrize(
    ("forward", "axes"),
    [
        (lambda m, x: F.conv2d(x, m.w, m.b, 2, 1), 2),
        (lambda m, x: F.conv2d(input=x, weight=m.w * 2, stride=(2, 1), dilation=2), 2),
        (lambda m, x: F.conv2d(x, m.w, padding="same"), 2),
        (lambda m, x: F.conv2d(x, m.w, m.b, padding="valid"), 2),
        (lambda m, x: F.conv2d(x, m.w[:, :2], groups=2), 2),
        (lambda m, x: F.conv_transpose2d(x, m.w, m.b, 2, 1, 1), 2),
        (lambda m, x: F.conv_transpose2d(x, m.w[:, :2], groups=2, dilation=2), 2),
        (lambda m, x: F.linear(x, m.w[:, 0, 0, :], m.b), 0),
        (lambda m, x: F.avg_pool2d(x, 2), 2),
        (lambda m, x: F.avg_pool2d(x, (3, 2), stride=1, padding=1), 2),
        (lambda m, x: F.pad(x, (1, 2)), 2),
        (lambda m, x: F.pad(x, (1, 1, 1, 1), "reflect"), 2),
        (lambda m, x: F.batch_norm(x, m.b, m.v, m.v, m.b, eps=0.1), 2),
        (lambda m, x: F.batch_norm(x, m.b, m.v), 2),
        (lambda m, x: F.batch_norm(x, m.b, m.v, bias=m.b), 2),
        (lambda m, x: F.instance_norm(x, m.b, m.v, m.v, use_input_stats=False), 2),
    ],
)
def test_functional_layers(forward: Forward, axes: int) -> None:
    constants = {"w": W, "b": F4 - 1, "v": F4}
    x = X[:, :, :, :3] if axes == 0 else X
    one = primitive(forward, **constants)
    assert (one.source.name, one.node.all_input_nodes[0]) == ("x", one.source)
    expected = forward(type("M", (), constants), x)
    m = one.map(axes, x.shape[-axes - 1])
    assert one.geometry(axes, x.shape[-axes - 1]) == m.geometry
    if all(low == high for low, high in m.padding):
        torch.testing.assert_close(to_layer(m, x)(x), expected, rtol=1e-12, atol=1e-12)
    else:
        assert m.padding == ((0, 0), (1, 2))


NO_STATISTICS = "it has no running statistics: it normalises by the batch, also in eval mode"


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda m, x: F.conv2d(x, x[:, :, :1, :1]), "its weight depends on the input"),
        (lambda m, x: F.conv2d(x, m.w, x.mean((0, 2, 3))), "its weight depends on the input"),
        (lambda m, x: F.linear(x, x[0, 0]), "its weight depends on the input"),
        (lambda m, x: F.linear(x, m.w[0, 0], x[0, 0, 0]), "its weight depends on the input"),
        (lambda m, x: F.linear(x, m.w[0, 0], bias=x[0, 0, 0]), "its weight depends on the input"),
        (lambda m, x: F.conv2d(x, m.w.int()), "its weight is int32, not floating point"),
        (lambda m, x: F.conv2d(x, m.w) + F.conv2d(x, m.w), None),
        (lambda m, x: F.conv2d(F.conv2d(x, m.w), m.w), "'conv2d_1' shares its weights"),
        (lambda m, x: F.batch_norm(x, None, None, training=True), NO_STATISTICS),
        (lambda m, x: F.batch_norm(x, m.b, m.v, training=True), NO_STATISTICS),
        (lambda m, x: F.instance_norm(x, m.b, m.v), NO_STATISTICS),
        (lambda m, x: F.batch_norm(x, m.b, m.v, x.mean((0, 2, 3))), "'mean', one of its parameters, is computed"),
        (lambda m, x: F.pad(x, (x.shape[2], 0)), "its padding depends on the size of the input"),
        (lambda m, x: F.pad(x, (-1, 0)), "it crops: a padding is negative"),
        (lambda m, x: x * m.v.half().view(4, 1, 1), "it computes in another dtype, float16"),
        (lambda m, x: x * 2, "whether 'x' holds floating-point numbers cannot be told: fuse with an example_input"),
    ],
)
def test_reasons(forward: Forward, reason: str | None) -> None:
    assert last(forward, w=W, b=F4, v=F4) == reason


@pytest.mark.parametrize("learns", [True, False])
def test_computed_weights_learn_as_what_they_are_computed_of(learns: bool) -> None:
    weight = nn.Parameter(W.clone(), learns)
    by_linear = lambda m, x: F.linear(x, m.w[:, 0, 0])  # noqa: E731
    for forward in (lambda m, x: F.conv2d(x, m.w * 2), lambda m, x: F.conv_transpose2d(x, m.w), by_linear):
        one = primitive(forward, w=weight)
        made = one.build(None, next(iter(one.axes)), 4).weight
        assert made.requires_grad is learns
        assert weight.grad_fn is None


def test_a_functional_layer_has_the_name_of_the_module_that_holds_its_weight() -> None:
    held = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    assert primitive(lambda m, x: F.conv2d(x, m.held[0].weight), held=held).name == "held.0"
    assert primitive(lambda m, x: F.conv2d(x, m.w), w=W).name == "conv2d"
    norm = lambda m, x: F.batch_norm(x, m.held[1].running_mean, m.held[1].running_var)  # noqa: E731
    assert primitive(norm, held=held).name == "held.1"
