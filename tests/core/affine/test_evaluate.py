"""Regions as one map: the network's own numbers, and the geometry that was decided without them."""

from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from torch import Tensor, nn
from torch.nn import functional as F

from nbcompile.core.affine.chains import Chain, Join
from nbcompile.core.affine.evaluate import Element, Outlines, evaluate
from nbcompile.core.affine.lifter import Lifter
from nbcompile.core.affine.regions import Regions
from nbcompile.core.algebra import Geometry, NotExact
from nbcompile.core.graph.shapes import Shapes
from nbcompile.core.numerics import relative_error
from tests.core.affine.lifts import Written, conv
from tests.core.affine.networks import Drawn, X, networks, run
from tests.core.algebra.maps import run as run_map
from tests.symbolic import capture

LIKE = X.new_empty(0)


def outline(outlines: Outlines, elements: tuple[Element, ...], channels: int) -> Geometry:
    """As a plan asks: element by element."""
    geometry: Geometry | None = None
    for i, element in enumerate(elements):
        geometry = outlines.extended(elements[:i], geometry, element, channels)
    assert geometry is not None
    return geometry


@settings(max_examples=150)
@given(networks())
def test_a_region_is_one_map_or_is_refused(model: Drawn) -> None:
    """Every chain, from every element on: with the values that the network itself had before and after it."""
    gm, shapes, values = run(model)
    lifter = Lifter(gm, shapes)
    for chain in Regions(lifter).chains.values():
        outlines = Outlines(2, lifter)
        ends = [chain.base, *(e.node for e in chain.elements)]
        for i, source in enumerate(ends[:-1]):
            part, channels = chain.elements[i:], values[source].shape[1]
            try:
                geometry = outline(outlines, part, channels)
            except NotExact as reason:
                event(str(reason)[:20])
                continue
            whole = evaluate(part, 2, channels, LIKE)
            event(f"{len(part)} elements")
            assert whole.geometry == geometry
            assert relative_error(run_map(whole, values[source]), values[ends[-1]]) < 1e-12
            assert whole.weight.dtype == torch.float64


def only_chain(model: nn.Module, x: Tensor | None = X) -> tuple[Chain, Outlines]:
    gm = capture(model)
    lifter = Lifter(gm, Shapes(gm, None if x is None else (x,)))
    (chain,) = Regions(lifter).chains.values()
    return chain, Outlines(2, lifter)


def test_nothing_is_the_identity() -> None:
    whole = evaluate((), 2, 3, LIKE)
    assert (whole.kernel, whole.bias, whole.weight.dtype) == ((1, 1), None, torch.float64)
    x = X[:, :3]
    assert torch.equal(run_map(whole, x), x)


def test_half_precision_of_a_layer_is_no_precision_of_the_result() -> None:
    """A float32 network: everything is computed in float64, from the numbers it has."""
    model = Written(
        lambda m, x: m.c(m.n(m.a(x)) * m.f), a=conv(3), n=nn.BatchNorm2d(4), c=conv(), f=torch.rand(4, 1, 1)
    )
    model = model.float()
    chain, _ = only_chain(model, X.float())
    weights = [p.clone() for p in model.parameters()]
    whole = evaluate(chain.elements, 2, 4, LIKE.float())
    assert whole.bias is not None
    assert whole.weight.dtype == whole.bias.dtype == torch.float64
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert relative_error(run_map(whole, X), model.double()(X)) < 1e-12


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.a(x),
        lambda m, x: m.a(x) + m.b(x),
        lambda m, x: torch.add(x, m.a(x), alpha=2),
        lambda m, x: torch.cat([m.a(x), x], 1),
        lambda m, x: m.a(x) * 2,
    ],
)
def test_the_result_has_memory_of_its_own(forward: Any) -> None:
    model = Written(forward, a=conv(3), b=conv(3))
    chain, _ = only_chain(model)
    before = [p.clone() for p in model.parameters()]
    whole = evaluate(chain.elements, 2, 4, LIKE)
    assert relative_error(run_map(whole, X), model(X)) < 1e-12
    whole.weight.detach().fill_(9)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_shift_that_is_taken_away_again_is_gone(dtype: torch.dtype) -> None:
    """And not a residue of rounding: what pads after it may pad with zeros."""
    model = Written(
        lambda m, x: m.c((m.a(x) + m.f) * 3 - 3 * m.f), a=conv(1, bias=False), c=conv(3), f=torch.rand(4, 1, 1)
    ).to(dtype)
    chain, outlines = only_chain(model, X.to(dtype))
    assert len(chain.elements) == 5
    assert evaluate(chain.elements[:4], 2, 4, LIKE.to(dtype)).bias is None
    assert evaluate(chain.elements[:3], 2, 4, LIKE.to(dtype)).bias is not None
    whole = evaluate(chain.elements, 2, 4, LIKE.to(dtype))
    assert whole.geometry == outline(outlines, chain.elements, 4)
    assert relative_error(run_map(whole, X), model.double()(X)) < (1e-6 if dtype == torch.float32 else 1e-12)


def test_a_shift_that_is_not_quite_taken_away_stays() -> None:
    model = Written(lambda m, x: (m.a(x) + m.f) - m.f * 1.001, a=conv(1, bias=False), f=torch.rand(4, 1, 1))
    chain, _ = only_chain(model)
    whole = evaluate(chain.elements, 2, 4, LIKE)
    assert whole.bias is not None
    torch.testing.assert_close(whole.bias, -0.001 * model.f.flatten(), rtol=1e-9, atol=0)  # type: ignore[operator]


def test_a_fresh_norm_is_refused_as_a_trained_one_is() -> None:
    """Its shift is zero by chance: whether layers merge may not depend on that."""
    model = Written(lambda m, x: m.c(m.n(x)), n=nn.BatchNorm2d(4), c=conv(3))
    nn.BatchNorm2d.reset_parameters(model.n)  # type: ignore[arg-type]
    chain, outlines = only_chain(model)
    with pytest.raises(NotExact, match="but the first adds a bias"):
        outline(outlines, chain.elements, 4)


def padded_with(value: Any) -> Any:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.pad(m.n(m.a(x)), [1, 1, 1, 1])
        y[:, :, 0] = y[:, :, -1] = value(m)[:, None]
        y[:, :, :, 0] = y[:, :, :, -1] = value(m)[:, None]
        z: Tensor = m.c(y)
        return z

    return forward


def test_what_is_padded_with_must_be_the_shift() -> None:
    """The Diverse Branch Block: 1×1, norm, a ring of what the norm makes of zero, 3×3."""
    shift = lambda m: m.n.bias - m.n.running_mean * m.n.weight / (m.n.running_var + m.n.eps).sqrt()  # noqa: E731
    layers = {"n": nn.BatchNorm2d(4), "c": conv(3, padding=0)}
    model = Written(padded_with(shift), a=conv(1, bias=False), **layers)
    chain, outlines = only_chain(model)
    assert [len(getattr(e, "parts", ())) for e in chain.elements] == [0, 0, 4, 0]
    geometry = outline(outlines, chain.elements, 4)
    assert (geometry.padding, geometry.filled) == (((1, 1), (1, 1)), False)
    whole = evaluate(chain.elements, 2, 4, LIKE)
    assert whole.geometry == geometry
    assert relative_error(run_map(whole, X), model(X)) < 1e-12
    chain, outlines = only_chain(Written(padded_with(lambda m: 2 * shift(m)), a=conv(1, bias=False), **layers))
    with pytest.raises(NotExact, match="pads with a value that is not what the first gives there"):
        outline(outlines, chain.elements, 4)


class Stacked(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.a, self.b, self.dim = conv().double(), conv().double(), dim

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x)], self.dim)


@pytest.mark.parametrize(
    ("dim", "x", "reason"),
    [
        (1, X, None),
        (-3, X, None),
        (-3, None, None),
        (0, X[0], None),
        (1, None, "'cat' cannot be seen to concatenate channels: fuse with an example_input"),
        (0, None, "'cat' cannot be seen to concatenate channels: fuse with an example_input"),
        (0, X, "'cat' concatenates along another dimension than the channels"),
        (2, X, "'cat' concatenates along another dimension than the channels"),
        (-1, X, "'cat' concatenates along another dimension than the channels"),
        (1, X[0], "'cat' concatenates along another dimension than the channels"),
    ],
)
def test_a_stack_must_be_one_of_channels(dim: int, x: Tensor | None, reason: str | None) -> None:
    chain, outlines = only_chain(Stacked(dim), x)
    (join,) = chain.elements
    if reason is None:
        assert outlines.of(join, 4).outputs == 8
        assert outlines.of(join, 4) is outlines.of(join, 4)
        return
    with pytest.raises(NotExact) as caught:
        outlines.of(join, 4)
    assert str(caught.value) == reason


def test_channels_that_are_cut_decide_on_the_groups() -> None:
    """Channels shuffled and convolved in parts: a permutation is no grouped map, parts that stay in place are one."""
    parts = lambda m, x: torch.cat([m.a(x[:, :2]), m.b(x[:, 2:])], 1)  # noqa: E731
    swapped = lambda m, x: torch.cat([m.a(x[:, 2:]), m.b(x[:, :2])], 1)  # noqa: E731
    for forward, groups in ((parts, 2), (swapped, 1)):
        model = Written(forward, a=conv(3, 2, 3), b=conv(3, 2, 3))
        chain, outlines = only_chain(model)
        whole = evaluate(chain.elements, 2, 4, LIKE)
        assert outlines.of(chain.elements[0], 4) == whole.geometry
        assert (whole.groups, whole.weight.shape) == (groups, (6, 4 // groups, 3, 3))
        assert relative_error(run_map(whole, X), model(X)) < 1e-12


def test_factors_of_branches_that_pad_with_a_value() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.a(F.pad(x, (1, 1, 1, 1), value=0.5)) - m.b(F.pad(x, (1, 1, 1, 1), value=0.5))

    model = Written(forward, a=conv(3, padding=0), b=conv(3, padding=0))
    chain, outlines = only_chain(model)
    (join,) = chain.elements
    assert isinstance(join, Join)
    assert join.factors == (1, -1)
    geometry = outlines.of(join, 4)
    assert geometry.filled
    whole = evaluate(chain.elements, 2, 4, LIKE)
    assert whole.geometry == geometry
    assert relative_error(run_map(whole, X), model(X)) < 1e-12
