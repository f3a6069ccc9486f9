"""What a layer pads with must be what the layers before give there: else a merge is refused, and rightly so."""

from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor

from nbcompile.core.algebra import AffineMap, NotExact, carried, compose, padding_map, per_channel, shift_fits
from tests.core.algebra.maps import (
    MODES,
    ONE,
    SAME,
    THREE,
    Axis,
    axis_of,
    compare,
    error,
    filled,
    make,
    normal,
    run,
    run_all,
)


def naive(first: AffineMap, second: AffineMap) -> AffineMap:
    """What a merge that forgets the border would give."""
    mode = second.padding_mode if first.padding_mode == "zeros" else first.padding_mode
    still = replace(second, padding=((0, 0),) * len(second.kernel), padding_mode="zeros", pad_value=None)
    padding = tuple(
        (low + s * low2, high + s * high2)
        for (low, high), (low2, high2), s in zip(first.padding, second.padding, first.stride, strict=True)
    )
    return replace(compose(first, still), padding=padding, padding_mode=mode)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[AffineMap, AffineMap]:
    """Two layers as networks have them: the first pads at most half of its reach, and both have stride 1."""
    axes = draw(st.integers(1, 2))
    shapes = [draw(axis_of(3, pads=False)) for _ in range(2 * axes)]
    halves = [draw(st.integers(0, shape.reach // 2)) for shape in shapes[:axes]]
    pads = halves + [draw(st.integers(0, 1)) for _ in range(axes)]
    shapes = [replace(shape, stride=1, padding=(p, p)) for shape, p in zip(shapes, pads, strict=True)]
    first = make(2, 2, shapes[:axes], 1, draw(st.booleans()), draw(st.sampled_from(MODES)))
    second = make(2, 2, shapes[axes:], 1, draw(st.booleans()), draw(st.sampled_from(MODES)))
    if draw(st.sampled_from((False, False, True))):
        second = filled(second, normal(2))
    # a circular layer that keeps the size commutes with circular padding: refused, though it need not be
    assume(not first.padding_mode == second.padding_mode == "circular")
    return first, second


@settings(max_examples=200)
@given(pairs())
def test_a_refusal_is_necessary(pair: tuple[AffineMap, AffineMap]) -> None:
    try:
        compose(*pair)
    except NotExact:
        whole = naive(*pair)
        x = normal(1, 2, *(17, 16)[: len(whole.kernel)])
        assert error(run(whole, x), run_all(pair, x)) > 1e-6
    else:
        assume(False)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (
            make(2, 2, THREE),
            make(2, 2, SAME),
            r"pads by 'zeros' between two kernels \(3,\) and \(3,\): the merged layer would differ at the border",
        ),
        (
            make(2, 2, ONE),
            make(2, 2, SAME),
            r"pads with zeros but the first adds a bias: the merged layer would differ at the border; pad before",
        ),
        (
            make(2, 2, SAME, mode="reflect"),
            make(2, 2, SAME),
            "the layers pad by 'reflect' and by 'zeros', which no one layer does",
        ),
        (
            make(2, 2, [Axis(1, stride=2)]),
            make(2, 2, SAME, mode="circular"),
            "pads by 'circular' where the first strides or pads: the merged layer would differ at the border",
        ),
        (
            make(2, 2, ONE, bias=False),
            filled(make(2, 2, SAME), torch.ones(2)),
            "pads with a value that is not what the first gives there: the merged layer would differ at the border",
        ),
        (make(2, 4, ONE), make(6, 2, ONE), "the first layer gives 4 channels, the second reads 6"),
    ],
)
def test_compose_says_why_not(first: AffineMap, second: AffineMap, reason: str) -> None:
    with pytest.raises(NotExact, match=reason):
        compose(first, second)


def test_a_strided_map_under_reflection_would_differ() -> None:
    first, second = make(2, 2, [Axis(1, stride=2)]), make(2, 2, SAME, mode="reflect")
    x = normal(1, 2, 8)
    assert error(run(naive(first, second), x), run_all((first, second), x)) > 1e-6


def test_a_bias_passes_under_padding_by_values_of_the_map() -> None:
    first, second = make(2, 4, ONE), make(4, 2, SAME, mode="reflect")
    whole = compose(first, second)
    assert (whole.padding, whole.padding_mode) == (((1, 1),), "reflect")
    compare(whole, (first, second), (6,))


def test_a_bias_of_zeros_is_none() -> None:
    first, second = replace(make(2, 4, ONE), bias=torch.zeros(4, dtype=torch.float64)), make(4, 2, SAME)
    compare(compose(first, second), (first, second), (6,))


@pytest.mark.parametrize(("off", "merges"), [(0.0, True), (1e-7, True), (1e-5, False)])
def test_padding_with_the_shift_is_padding_with_zeros_before(off: float, merges: bool) -> None:
    """DBB's 1×1, norm, pad with what the norm gives for zero, 3×3: the value was computed in float32."""
    one, norm = make(3, 4, ONE * 2, bias=False), per_channel(normal(4), normal(4), 2)
    assert norm.bias is not None
    value = (norm.bias * (1 + off)).float()
    chain = (one, norm, padding_map(((1, 1), (1, 1)), 4, one.weight, value=value), make(4, 5, THREE * 2))
    after = compose(compose(chain[0], chain[1]), compose(chain[2], chain[3])) if merges else None
    if after is None:
        with pytest.raises(NotExact, match="not what the first gives there"):
            compose(compose(chain[0], chain[1]), chain[2])
        return
    assert (after.padding, after.pad_value, after.geometry.filled) == (((1, 1), (1, 1)), None, False)
    x = normal(2, 3, 7, 5)
    assert error(run(after, x), run_all(chain, x)) < 1e-6  # float32's own rounding of the value


def test_a_value_padded_with_stays_with_the_map_that_pads() -> None:
    value = normal(3)
    chain = (padding_map(((2, 1),), 3, value, value=value), make(3, 4, THREE), make(4, 2, [Axis(2, stride=2)]))
    whole = compose(compose(chain[0], chain[1]), chain[2])
    assert whole.pad_value is value
    assert whole.geometry.filled
    compare(whole, chain, (8,))


@pytest.mark.parametrize(
    ("shift", "value", "fits"),
    [
        (None, None, True),
        (None, torch.zeros(2), True),
        (torch.zeros(2), None, True),
        (torch.tensor([0.0, 1e-30]), None, False),  # zeros are met exactly
        (None, torch.tensor([0.0, 1e-30]), False),
        (torch.tensor([1.0, 3.0], dtype=torch.float64) / 3, torch.tensor([1.0, 3.0]) / 3, True),
        (torch.tensor([1.0, 3.0], dtype=torch.float64) / 3, (torch.tensor([1.0, 3.0]) / 3).double(), False),
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]), False),
    ],
)
def test_a_shift_fits_up_to_the_rounding_of_what_is_padded_with(
    shift: Tensor | None, value: Tensor | None, fits: bool
) -> None:
    assert shift_fits(shift, value) is fits


@pytest.mark.parametrize("axes", [1, 2])
def test_padding_twice_is_padding_once_where_the_values_agree(axes: int) -> None:
    """The second value must be what the first map makes of its own."""
    value = normal(3)
    first = replace(per_channel(normal(3), normal(3), axes), padding=((1, 0),) * axes, pad_value=value)
    again = padding_map(((0, 2),) * axes, 3, value, value=carried(first, value))
    whole = compose(first, again)
    assert whole.padding == ((1, 2),) * axes
    compare(whole, (first, again), (4, 5)[:axes])
    with pytest.raises(NotExact, match="not what the first gives there"):
        compose(first, replace(again, pad_value=first.bias))
