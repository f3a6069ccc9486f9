"""Transposed maps are torch's own, and merge with what is pointwise and with each other."""

from dataclasses import replace
from math import gcd

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, event, given, settings

from nbcompile.core.algebra import (
    AffineMap,
    NotExact,
    add,
    added,
    compose,
    composed,
    concatenate,
    concatenated,
    from_transposed_weight,
    per_channel,
    to_transposed_weight,
)
from tests.core.algebra.maps import ONE, SPREAD, THREE, Axis, attempt, error, make, normal, run, run_all, transposed

ODD = (5, 3, 2)


@st.composite
def layers(draw: st.DrawFn, axes: int, inputs: int, outputs: int) -> AffineMap:
    """As torch has them: the same padding on both sides, and less output padding than stride or dilation."""
    groups = draw(st.sampled_from([g for g in (1, 2, 3, 6) if gcd(inputs, outputs) % g == 0]))
    shape, beyond = [], []
    for _ in range(axes):
        kernel, stride, dilation = (draw(st.integers(1, 3)) for _ in range(3))
        side = draw(st.integers(0, 2))
        shape.append(Axis(kernel, stride, (side, side), dilation))
        beyond.append(draw(st.integers(0, max(stride, dilation) - 1)))
    m = transposed(make(inputs, outputs, shape, groups, draw(st.booleans())), tuple(beyond))
    assume(all(n > 0 for n in m.geometry.sizes(ODD[:axes])))
    return m


@settings(max_examples=200)
@given(st.integers(1, 3), st.sampled_from(((2, 6), (6, 6), (6, 3))), st.data())
def test_a_transposed_map_is_torchs_own(axes: int, channels: tuple[int, int], data: st.DataObject) -> None:
    m = data.draw(layers(axes, *channels))
    x = normal(2, channels[0], *ODD[:axes])
    weight = to_transposed_weight(m.weight, m.groups)
    assert torch.equal(from_transposed_weight(weight, m.groups), m.weight)
    sides = [low for low, _ in m.padding]
    wanted = SPREAD[axes](x, weight, m.bias, m.stride, sides, m.output_padding, m.groups, m.dilation)
    assert m.geometry.sizes(ODD[:axes]) == tuple(wanted.shape[2:])
    assert error(run(m, x), wanted) < 1e-12
    assert not m.geometry.pads
    assert not m.pads


@settings(max_examples=120)
@given(st.integers(1, 3), st.data())
def test_pointwise_maps_merge_before_and_after(axes: int, data: st.DataObject) -> None:
    inner = data.draw(st.sampled_from((2, 6)))
    groups = st.sampled_from((1, 2))
    chain = (
        per_channel(normal(4), torch.zeros(4, dtype=torch.float64) if data.draw(st.booleans()) else None, axes),
        make(4, inner, ONE * axes, data.draw(groups), bias=False),
        data.draw(layers(axes, inner, 6)),
        per_channel(normal(6), normal(6), axes),
        make(6, 4, ONE * axes, data.draw(groups), data.draw(st.booleans())),
    )
    whole = chain[0]
    for m in chain[1:]:
        expected = composed(whole.geometry, m.geometry, shift_fits=True)  # its bias, if any, is zeros
        whole = compose(whole, m)
        assert whole.geometry == expected
    x = normal(2, 4, *ODD[:axes])
    assert error(run(whole, x), run_all(chain, x)) < 1e-12


@st.composite
def branches(draw: st.DrawFn) -> tuple[AffineMap, ...]:
    axes = draw(st.integers(1, 2))
    found = [draw(layers(axes, 6, 6))]
    sizes = found[0].geometry.sizes(ODD[:axes])
    for _ in range(draw(st.integers(1, 2))):
        other = replace(draw(layers(axes, 6, 6)), stride=found[0].stride)
        whole = replace(other, padding=((0, 0),) * axes, output_padding=(0,) * axes).geometry.sizes(ODD[:axes])
        excess = [n - m for n, m in zip(whole, sizes, strict=True)]
        lows = [draw(st.integers(0, max(0, n))) for n in excess]
        if draw(st.sampled_from((True,) * 5 + (False,))):  # cropped to the same size
            padding = tuple((low, max(0, n - low)) for low, n in zip(lows, excess, strict=True))
            other = replace(other, padding=padding, output_padding=tuple(max(0, -n) for n in excess))
        found.append(other)
    return tuple(found)


@settings(max_examples=200)
@given(branches())
def test_sums_and_stacks_of_transposed_maps(group: tuple[AffineMap, ...]) -> None:
    size = ODD[: len(group[0].kernel)]
    geometries = [m.geometry for m in group]
    whole, stack = attempt(lambda: add(*group)), attempt(lambda: concatenate(*group))
    if isinstance(whole, str) or isinstance(stack, str):
        event("refused")
        assert whole == stack == "the branches give maps of different sizes"
        assert len({g.sizes(size) for g in geometries}) > 1
        return
    event("compared")
    assert (whole.geometry, stack.geometry) == (added(*geometries), concatenated(*geometries))
    x = normal(2, 6, *size)
    parts = [run(m, x) for m in group]
    assert {m.geometry.sizes(size) for m in (*group, whole, stack)} == {tuple(parts[0].shape[2:])}
    assert error(run(whole, x), sum(parts[1:], parts[0])) < 1e-12
    assert error(run(stack, x), torch.cat(parts, 1)) < 1e-12


def test_a_smaller_kernel_lies_within_the_larger_and_the_layer_stays_torchs() -> None:
    """A symmetric crop with output padding, which is what ``nn.ConvTranspose2d`` can say, is kept."""
    three = transposed(make(4, 4, [Axis(3, 2, (1, 1))] * 2), (1, 1))
    one = transposed(make(4, 4, [Axis(1, 2)] * 2), (1, 1))
    for whole in (add(three, one), add(one, three)):
        assert whole.geometry == three.geometry


UP = transposed(make(2, 2, [Axis(2, 2)]))


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (UP, make(2, 2, THREE), "merges only with a pointwise layer of stride 1 that pads nothing"),
        (make(2, 2, THREE), UP, "merges only with a pointwise layer of stride 1 that pads nothing"),
        (make(2, 2, [Axis(1, 2)], bias=False), UP, "merges only with a pointwise layer of stride 1"),
        (make(2, 2, [Axis(1, 1, (1, 0))], bias=False), UP, "merges only with a pointwise layer of stride 1"),
        (UP, UP, "merges only with a pointwise layer of stride 1 that pads nothing"),
        (make(2, 2, ONE), UP, "the first layer adds a bias, of which the transposed convolution gives every position"),
    ],
)
def test_compose_says_why_not(first: AffineMap, second: AffineMap, reason: str) -> None:
    with pytest.raises(NotExact, match=reason):
        compose(first, second)
    with pytest.raises(NotExact, match=reason):
        composed(first.geometry, second.geometry)


@settings(max_examples=100)
@given(st.integers(1, 2), st.data())
def test_refusing_a_bias_before_is_necessary(axes: int, data: st.DataObject) -> None:
    second = data.draw(layers(axes, 2, 2))
    # of stride 1 and cropped by the whole reach, every position gets all taps: refused, though it need not be
    fully = zip(second.stride, second.padding, second.geometry.reach, strict=True)
    assume(any(stride > 1 or reach > low for stride, (low, _), reach in fully))
    first = make(2, 2, ONE * axes)
    bare = compose(replace(first, bias=None), second)
    x = normal(1, 2, *(9, 8)[:axes])
    left_over = run_all((first, second), x) - run(bare, x)
    assert float((left_over - left_over.mean(dim=(*range(2, axes + 2),), keepdim=True)).abs().max()) > 1e-6


def test_add_says_why_not() -> None:
    with pytest.raises(NotExact, match="one branch is a transposed convolution, the other is not"):
        add(UP, make(2, 2, [Axis(2, 2)]))
