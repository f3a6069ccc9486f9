"""Fewer groups, more groups and chosen channels: the same map in another shape."""

from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from nbcompile.core.algebra import AffineMap, add, compose, concatenate, embed_groups, frozen_norm, regrouped, selection
from tests.core.algebra.maps import ONE, SAME, Axis, error, make, normal, run

LIKE = torch.empty(0, dtype=torch.float64)


@pytest.mark.parametrize(("groups", "fewer"), [(6, 1), (6, 2), (6, 3), (6, 6), (2, 1), (3, 1)])
def test_embed_groups_changes_nothing_but_the_groups(groups: int, fewer: int) -> None:
    m = make(6, 12, SAME * 2, groups=groups)
    fewer_weight = embed_groups(m.weight, groups, fewer)
    assert fewer_weight.shape == (12, 6 // fewer, 3, 3)
    x = normal(2, 6, 7, 5)
    assert error(run(replace(m, weight=fewer_weight, groups=fewer), x), run(m, x)) < 1e-12


@settings(max_examples=100)
@given(st.sampled_from(((6, 12), (12, 6), (12, 18), (4, 4))), st.integers(0, 3), st.data())
def test_regrouping_finds_the_most_groups(channels: tuple[int, int], axes: int, data: st.DataObject) -> None:
    inputs, outputs = channels
    common = [g for g in (1, 2, 3, 4, 6) if inputs % g == outputs % g == 0]
    hidden = data.draw(st.sampled_from(common))
    dense = embed_groups(make(inputs, outputs, [Axis(2)] * axes, groups=hidden).weight, hidden, 1)
    given_in = data.draw(st.sampled_from([g for g in common if hidden % g == 0]))
    blocks = [
        rows.tensor_split(given_in, 1)[i] for i, rows in enumerate(dense.tensor_split(given_in))
    ]  # as a map of fewer groups has it
    m = replace(make(inputs, outputs, [Axis(2)] * axes, groups=given_in), weight=torch.cat(blocks))
    found = regrouped(m)
    assert found.groups == hidden
    x = normal(3, inputs, *(4,) * axes)
    as_layer = [replace(one, weight=embed_groups(one.weight, one.groups, 1), groups=1) for one in (m, found)]
    assert torch.equal(run(as_layer[1], x), run(as_layer[0], x))


def test_regrouping_where_the_groups_do_not_nest() -> None:
    """Groups of 3 and of 2 channels: only their common part is there, which two at a time also hold."""
    dense = torch.zeros(6, 6, dtype=torch.float64)
    for i, j in ((0, 1), (1, 0), (2, 2), (3, 3), (4, 5)):
        dense[i, j] = 1.0
    m = AffineMap(torch.cat([dense[:3, :3], dense[3:, 3:]])[..., None], None, (1,), ((0, 0),), (1,), groups=2)
    found = regrouped(m)
    assert found.groups == 3
    x = normal(1, 6, 4)
    assert torch.equal(run(found, x), run(m, x))


@pytest.mark.parametrize("entry", [(0, 1), (1, 0)])
def test_one_entry_beside_the_diagonal_keeps_the_group(entry: tuple[int, int]) -> None:
    m = selection(range(4), 4, 0, LIKE)
    assert regrouped(m).groups == 4
    m.weight[entry] = 1e-300
    assert regrouped(m).groups == 2


def test_no_weight_at_all_is_depthwise() -> None:
    m = replace(make(4, 6, ONE), weight=torch.zeros(6, 4, 1, dtype=torch.float64))
    assert regrouped(m).groups == 2


def test_branches_on_slices_of_the_channels_are_one_grouped_layer() -> None:
    """Grouped convolution written as split, convolve, concatenate."""
    first, second = make(3, 4, SAME * 2), make(3, 4, SAME * 2)
    sides = [selection(rows, 6, 2, LIKE) for rows in (range(3), range(3, 6))]
    whole = regrouped(concatenate(compose(sides[0], first), compose(sides[1], second)))
    assert (whole.groups, whole.weight.shape) == (2, (8, 3, 3, 3))
    x = normal(2, 6, 7, 5)
    assert error(run(whole, x), torch.cat([run(first, x[:, :3]), run(second, x[:, 3:])], 1)) < 1e-12


@pytest.mark.parametrize("axes", [0, 1, 2, 3])
def test_select_takes_channels_in_the_order_asked_for(axes: int) -> None:
    x = normal(2, 5, *(3,) * axes)
    assert torch.equal(run(selection((4, 0, 0), 5, axes, LIKE), x), x[:, [4, 0, 0]])


def test_works_in_the_dtype_of_its_operands() -> None:
    def halved(m: AffineMap) -> AffineMap:
        return replace(m, weight=m.weight.float(), bias=None if m.bias is None else m.bias.float())

    first, second = halved(make(4, 4, SAME * 2, groups=2)), halved(make(4, 4, ONE * 2))
    for whole in (compose(first, second), add(first, second), concatenate(first, second)):
        assert whole.bias is not None
        assert whole.weight.dtype == whole.bias.dtype == torch.float32


def test_is_differentiable() -> None:
    """collapse_ trains through it: every operand's gradient, through groups, dilation, stride, a sum and a stack."""
    norm = torch.rand(4, 4, dtype=torch.float64) + 0.5
    first = make(2, 4, [Axis(2, 1, (1, 1), 2)])
    second = make(4, 2, [Axis(2, 2)], groups=2)
    beside = make(2, 2, [Axis(3, 2, (0, 1))])

    def merged(w1: Tensor, b1: Tensor, w2: Tensor, w3: Tensor, statistics: Tensor) -> tuple[Tensor, ...]:
        a, c = replace(first, weight=w1, bias=b1), replace(beside, weight=w3)
        mean, var, gamma, beta = statistics
        chain = compose(compose(a, frozen_norm(mean, var, gamma, beta, 1e-5, 1)), replace(second, weight=w2))
        whole, stack = add(c, chain, c), concatenate(chain, c)
        assert whole.bias is not None
        assert stack.bias is not None
        return whole.weight, whole.bias, stack.weight, stack.bias

    operands = [
        t.requires_grad_() for t in (first.weight, first.bias, second.weight, beside.weight, norm) if t is not None
    ]
    assert torch.autograd.gradcheck(merged, operands)
