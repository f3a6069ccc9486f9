"""One map after another equals both on the full map, border included, or is refused for a reason that holds."""

from itertools import pairwise
from math import gcd

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, event, given, settings

from nbcompile.core.algebra import AffineMap, NotExact, carried, compose, composed, per_channel, shift_fits
from tests.core.algebra.maps import (
    MODES,
    ONE,
    THREE,
    Axis,
    attempt,
    compare,
    error,
    filled,
    fitting,
    inputs_of,
    make,
    maps,
    normal,
    run,
    run_all,
)


@st.composite
def chains(draw: st.DrawFn) -> tuple[AffineMap, ...]:
    axes, mode = draw(st.sampled_from((0, 1, 1, 2, 2, 2, 3, 3))), draw(st.sampled_from(MODES))
    channels = draw(st.lists(st.sampled_from((2, 3, 6)), min_size=3, max_size=4))
    later = st.sampled_from((False, False, True))  # padding in between is mostly refused
    pointwise = st.sampled_from((False, False, True))
    modes = st.sampled_from((mode, mode, "zeros"))
    chain: list[AffineMap] = []
    for i, o in pairwise(channels):
        if axes == 0:
            chain.append(make(i, o, [], bias=draw(st.booleans())))
            continue
        if draw(pointwise):  # what pads behind it can merge
            m = make(i, o, ONE * axes, bias=draw(st.booleans()))
        else:
            m = draw(maps(axes, i, o, pads=not chain or draw(later), mode=draw(modes)))
        value = draw(st.sampled_from(("zeros", "zeros", "any", "shift")))
        shift = carried(chain[-1], chain[-1].pad_value) if chain else None
        if value == "any" or (value == "shift" and shift is not None):
            m = filled(m, normal(i) if value == "any" or shift is None else shift)
        chain.append(m)
    return tuple(chain)


def merged(first: AffineMap, second: AffineMap) -> AffineMap | str:
    """The composition, or why there is none: decided alike with numbers and without."""
    fits = shift_fits(carried(first, first.pad_value), second.pad_value)
    whole = attempt(lambda: compose(first, second))
    without = attempt(lambda: composed(first.geometry, second.geometry, shift_fits=fits))
    assert without == (whole if isinstance(whole, str) else whole.geometry)
    return whole


@settings(max_examples=450)
@given(chains(), st.data())
def test_a_composition_equals_its_layers_on_the_full_map(chain: tuple[AffineMap, ...], data: st.DataObject) -> None:
    whole = chain[0]
    for m in chain[1:]:
        found = merged(whole, m)
        if isinstance(found, str):
            event(f"refused: {found[:40]}")
            return
        whole = found
    assert whole.groups == gcd(*(m.groups for m in chain))
    if candidates := fitting(chain):
        event("compared")
        for _ in range(3):
            compare(whole, chain, data.draw(st.sampled_from(candidates)))


@given(chains())
def test_composition_is_associative(chain: tuple[AffineMap, ...]) -> None:
    a, b, c = (*chain, chain[-1])[:3]
    assume(inputs_of(c) == b.weight.shape[0])
    try:
        left, right = compose(compose(a, b), c), compose(a, compose(b, c))
    except NotExact:
        return
    assert left.geometry == right.geometry
    torch.testing.assert_close(left.weight, right.weight, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_factorised_kernels_merge(mode: str) -> None:
    """1×3 then 3×1, each padding its own axis: padding one axis commutes with a convolution along the other."""
    first = make(2, 4, [Axis(1), Axis(3, padding=(1, 1))], bias=mode != "zeros", mode=mode)
    second = make(4, 2, [Axis(3, stride=2, padding=(1, 1)), Axis(1)], mode=mode)
    compare(compose(first, second), (first, second), (7, 5))


@pytest.mark.parametrize("axes", [0, 1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_carried_is_what_a_constant_input_becomes(axes: int, bias: bool) -> None:
    m = make(4, 6, THREE * axes, groups=2 if axes else 1, bias=bias)
    shift = normal(4)
    constant = shift.reshape(-1, *(1,) * axes).expand(-1, *(3,) * axes)
    found = carried(m, shift)
    assert found is not None
    assert error(found, run(m, constant[None]).flatten()) < 1e-12
    assert carried(m, None) is m.bias


@pytest.mark.parametrize(
    ("first", "second", "kernel", "dilation"),
    [
        (Axis(3), Axis(3), 5, 1),
        (Axis(3, stride=2), Axis(3), 7, 1),
        (Axis(1, stride=2), Axis(3), 3, 2),  # taps with holes between them
        (Axis(3, dilation=2), Axis(3, dilation=4), 7, 2),
        (Axis(3, dilation=2), Axis(2, dilation=3), 8, 1),
        (Axis(1, dilation=3), Axis(1, dilation=2), 1, 1),
    ],
)
def test_the_merged_kernel_is_no_larger_than_it_must_be(first: Axis, second: Axis, kernel: int, dilation: int) -> None:
    whole = compose(make(2, 2, [first]), make(2, 2, [second]))
    assert (whole.kernel, whole.dilation, whole.stride) == ((kernel,), (dilation,), (first.stride * second.stride,))


def test_a_depthwise_between_two_dense_pointwise_layers_is_dense() -> None:
    chain = (make(4, 6, [Axis(1, padding=(1, 1))] * 2), make(6, 6, THREE * 2, groups=6), make(6, 8, ONE * 2))
    whole = compose(compose(chain[0], chain[1]), chain[2])
    assert (whole.groups, whole.kernel, whole.padding) == (1, (3, 3), ((1, 1), (1, 1)))
    compare(whole, chain, (7, 5))


@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, True), (False, False)])
def test_linear_layers_on_any_leading_dimensions(biases: tuple[bool, bool]) -> None:
    first, second = make(3, 5, [], bias=biases[0]), make(5, 4, [], bias=biases[1])
    whole = compose(first, second)
    assert (whole.bias is None) == (biases == (False, False))
    x = normal(2, 7, 3)
    assert error(run(whole, x), run_all((first, second), x)) < 1e-12


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (make(64, 64, THREE * 2), per_channel(normal(64), normal(64), 2)),
        (per_channel(normal(64), None, 2), make(64, 64, THREE * 2)),
        (make(64, 64, THREE * 2, groups=64), make(64, 64, ONE * 2)),
    ],
)
def test_what_is_per_channel_makes_no_copy_but_the_result(first: AffineMap, second: AffineMap) -> None:
    with torch.profiler.profile(profile_memory=True) as profile:
        whole = compose(first, second)
    allocated = sum(event.self_cpu_memory_usage for event in profile.events() if event.self_cpu_memory_usage > 0)
    assert allocated < 1.5 * whole.weight.nbytes
