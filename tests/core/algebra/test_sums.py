"""The sum of maps side by side, and the stack of their channels, equal the branches or are refused for a reason."""

from dataclasses import replace
from math import gcd

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import event, given, settings
from torch import Tensor

from nbcompile.core.algebra import (
    AffineMap,
    Geometry,
    NotExact,
    add,
    added,
    average_pool,
    concatenate,
    concatenated,
    identity,
)
from tests.core.algebra.maps import (
    MODES,
    ONE,
    SAME,
    THREE,
    Axis,
    attempt,
    error,
    filled,
    fitting,
    inputs_of,
    make,
    maps,
    normal,
    run,
    size_after,
)

LIKE = torch.empty(0, dtype=torch.float64)


def fitted(draw: st.DrawFn, like: AffineMap, m: AffineMap, mode: str) -> AffineMap:
    """``m`` with the stride of ``like``, and padded so that it gives maps of the same size if it can."""
    totals = [
        max(0, sum(pads) - reach + ours)
        for pads, reach, ours in zip(like.padding, like.geometry.reach, m.geometry.reach, strict=True)
    ]
    lows = [draw(st.integers(0, total)) for total in totals]
    padding = tuple((low, total - low) for low, total in zip(lows, totals, strict=True))
    return replace(m, stride=like.stride, padding=padding, padding_mode=mode if any(totals) else "zeros")


@st.composite
def branches(draw: st.DrawFn, stack: bool = False) -> tuple[AffineMap, ...]:
    axes, mode = draw(st.integers(1, 3)), draw(st.sampled_from(MODES))
    inputs, outputs = draw(st.sampled_from(((2, 2), (6, 6), (6, 6), (2, 6), (6, 3))))
    found = [draw(maps(axes, inputs, outputs, pads=True, mode=mode))]
    modes = st.sampled_from((mode,) * 6 + ("zeros",))
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(("convolution", "convolution", "pool", "identity")))
        if kind == "convolution" or inputs != outputs:
            rows = draw(st.sampled_from((2, 6))) if stack else outputs
            other = draw(maps(axes, inputs, rows, pads=draw(st.booleans()), mode=draw(modes)))
        elif kind == "pool":
            window = [draw(st.integers(1, 3)) for _ in range(axes)]
            other = average_pool(window, (1,) * axes, ((0, 0),) * axes, inputs, LIKE)
        else:
            other = identity(inputs, axes, LIKE)
        if draw(st.sampled_from((True,) * 7 + (False,))):
            other = fitted(draw, found[0], other, draw(modes))
        found.append(other)
    value = draw(st.sampled_from((None, None, normal(inputs))))
    if value is not None:  # all pad with the same, or one of them with zeros
        found = [replace(m, pad_value=value) if m.pads and m.padding_mode == "zeros" else m for m in found]
        if draw(st.sampled_from((False, False, True))):
            found[0] = replace(found[0], pad_value=None)
    return tuple(found)


def agree(group: tuple[AffineMap, ...]) -> bool:
    values = [torch.zeros(inputs_of(m)) if m.pad_value is None else m.pad_value for m in group if m.pads]
    return all(torch.equal(v.double(), values[0].double()) for v in values)


def different(group: tuple[AffineMap, ...]) -> bool:
    """Whether the branches give maps of different sizes, or read their borders in different ways."""
    square = [(n,) * len(group[0].kernel) for n in range(9, 40)]
    outlines = [m.geometry for m in group]
    sizes_differ = any(len({size_after(g, size) for g in outlines}) > 1 for size in square)
    return sizes_differ or len({m.padding_mode for m in group if m.pads}) > 1 or not agree(group)


@settings(max_examples=400)
@given(branches(), st.data())
def test_a_sum_equals_its_branches_or_is_refused_for_a_reason(
    group: tuple[AffineMap, ...], data: st.DataObject
) -> None:
    whole = attempt(lambda: add(*group))
    without = attempt(lambda: added(*[m.geometry for m in group], fills_agree=agree(group)))
    if isinstance(whole, str):
        event(f"refused: {whole[:20]}")
        assert without == whole
        assert different(group)
        return
    assert without == whole.geometry
    assert whole.groups == gcd(*(m.groups for m in group))
    if candidates := fitting(*((m,) for m in group)):
        event(f"compared: {len(group)}")
        for _ in range(2):
            x = normal(2, inputs_of(whole), *data.draw(st.sampled_from(candidates)))
            assert error(run(whole, x), sum((run(m, x) for m in group[1:]), run(group[0], x))) < 1e-12


@settings(max_examples=150)
@given(branches(stack=True), st.data())
def test_a_stack_equals_its_branches_or_is_refused_for_a_reason(
    group: tuple[AffineMap, ...], data: st.DataObject
) -> None:
    whole = attempt(lambda: concatenate(*group))
    without = attempt(lambda: concatenated(*[m.geometry for m in group], fills_agree=agree(group)))
    if isinstance(whole, str):
        assert without == whole
        assert different(group)
        return
    assert without == whole.geometry
    if candidates := fitting(*((m,) for m in group)):
        event(f"compared: {len(group)}")
        x = normal(2, inputs_of(whole), *data.draw(st.sampled_from(candidates)))
        assert error(run(whole, x), torch.cat([run(m, x) for m in group], 1)) < 1e-12


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        (make(2, 2, [Axis(1, stride=2)]), make(2, 2, ONE), r"the branches have strides \(2,\) and \(1,\)"),
        (make(2, 4, ONE), make(2, 2, ONE), "the branches have 4 and 2 output channels"),
        (make(4, 2, ONE), make(2, 2, ONE), "the branches have 4 and 2 input channels"),
        (make(2, 2, SAME, mode="reflect"), make(2, 2, SAME), "one branch pads by 'reflect', the other by 'zeros'"),
        (make(2, 2, THREE), make(2, 2, ONE), "the branches give maps of different sizes"),
        (
            filled(make(2, 2, SAME), torch.ones(2)),
            make(2, 2, SAME),
            "the branches pad with different values",
        ),
    ],
)
def test_add_says_why_not(a: AffineMap, b: AffineMap, reason: str) -> None:
    for group in ((a, b), (a, a, b)):
        with pytest.raises(NotExact, match=reason):
            add(*group)


@pytest.mark.parametrize("mode", MODES)
def test_a_pointwise_branch_beside_a_padded_one(mode: str) -> None:
    """RepVGG's 3×3 + 1×1 + identity, whatever the 3×3 pads by."""
    three, one = make(4, 4, SAME * 2, mode=mode), make(4, 4, ONE * 2, groups=2)
    whole = add(three, one, identity(4, 2, LIKE))
    assert (whole.kernel, whole.padding, whole.padding_mode, whole.groups) == ((3, 3), ((1, 1), (1, 1)), mode, 1)
    x = normal(2, 4, 7, 5)
    assert error(run(whole, x), run(three, x) + run(one, x) + x) < 1e-12


def test_asymmetric_kernels_share_one() -> None:
    """ACNet's 3×3 + 1×3 + 3×1, dilated: the smaller ones lie on the centre row and column."""
    square = make(4, 4, [Axis(3, padding=(2, 2), dilation=2)] * 2)
    row = make(4, 4, [Axis(1), Axis(3, padding=(2, 2), dilation=2)])
    column = make(4, 4, [Axis(3, padding=(2, 2), dilation=2), Axis(1)])
    whole = add(row, column, square)
    assert whole.geometry == square.geometry
    x = normal(2, 4, 7, 5)
    assert error(run(whole, x), run(square, x) + run(row, x) + run(column, x)) < 1e-12


def test_the_same_map_twice_counts_twice() -> None:
    m = make(2, 2, SAME)
    x = normal(1, 2, 5)
    assert error(run(add(m, m), x), 2 * run(m, x)) < 1e-12
    assert error(run(concatenate(m, m), x), torch.cat([run(m, x)] * 2, 1)) < 1e-12


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_beside_each_other(bias: bool) -> None:
    a, b = make(3, 4, [], bias=bias), make(3, 4, [], bias=False)
    x = normal(2, 7, 3)
    assert (add(a, b).bias is None) == (not bias)
    assert error(run(add(a, b), x), run(a, x) + run(b, x)) < 1e-12
    assert error(run(concatenate(a, b), x), torch.cat([run(a, x), run(b, x)], -1)) < 1e-12


def test_the_value_padded_with_is_that_of_the_branch_that_pads() -> None:
    one, three = make(2, 2, ONE), filled(make(2, 2, SAME), normal(2))
    x = normal(1, 2, 5)
    for group in ((one, three), (three, one)):
        assert error(run(add(*group), x), run(one, x) + run(three, x)) < 1e-12


def test_operands_are_left_alone() -> None:
    dense, diagonal = make(4, 4, SAME), identity(4, 1, LIKE)
    before = dense.weight.clone()
    add(dense, diagonal)
    concatenate(dense, diagonal)
    assert torch.equal(dense.weight, before)
    assert torch.equal(diagonal.weight, torch.ones_like(diagonal.weight))


def test_a_depthwise_branch_costs_no_dense_copy() -> None:
    dense, diagonal = make(64, 64, SAME * 2), make(64, 64, SAME * 2, groups=64)
    with torch.profiler.profile(profile_memory=True) as profile:
        add(dense, diagonal, identity(64, 2, LIKE))
    allocated = sum(event.self_cpu_memory_usage for event in profile.events() if event.self_cpu_memory_usage > 0)
    assert allocated < 1.1 * dense.weight.nbytes


def test_what_a_geometry_counts() -> None:
    m = make(4, 6, [Axis(3, stride=2, padding=(1, 0))] * 2, groups=2)
    geometry = m.geometry
    assert (geometry.axes, geometry.pads, geometry.pointwise, geometry.reach) == (2, True, False, (2, 2))
    assert (geometry.weights, geometry.params) == (m.weight.numel(), m.weight.numel() + 6)
    assert geometry.sizes((7, 4)) == tuple(run(m, normal(1, 4, 7, 4)).shape[2:])
    linear = make(4, 6, [], bias=False).geometry
    assert (linear.axes, linear.pads, linear.pointwise, linear.params, linear.sizes(())) == (0, False, True, 24, ())
    assert isinstance(linear, Geometry)
    assert Tensor not in {type(v) for v in vars(geometry).values()}
