from itertools import combinations, pairwise

import hypothesis.strategies as st
import pytest
import torch
import torchvision
from hypothesis import given, settings
from torch import nn

from nbcompile import zoo
from nbcompile.core.affine.cost_law import Expense
from nbcompile.core.affine.lifter import Lifter
from nbcompile.core.affine.plan import Plan, Planner
from nbcompile.core.affine.regions import Regions, primitives
from nbcompile.core.graph.shapes import Shapes
from nbcompile.core.tracing.capture import capture
from nbcompile.testing import scramble_


def plans(model: nn.Module) -> list[Plan]:
    lifter = Lifter(capture(model.eval(), 1), Shapes(capture(model, 1), None))
    return [Planner(lifter).plan(chain) for chain in Regions(lifter).chains.values()]


def stored(widths: tuple[int, ...]) -> int:
    """Numbers that pointwise layers with biases between these widths store: their cost, but for the biases."""
    return sum(a * b + b for a, b in pairwise(widths))


def macs(widths: tuple[int, ...]) -> int:
    return sum(a * b for a, b in pairwise(widths))


@settings(max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=7))
def test_the_cheapest_split_is_found(widths: list[int]) -> None:
    """Against all splits of a chain of pointwise layers: each merge on its own may cost no more than what it merges."""
    model = nn.Sequential(*[nn.Conv2d(a, b, 1) for a, b in pairwise(widths)])
    inner = range(1, len(widths) - 1)
    allowed = []
    for n in range(len(inner) + 1):
        for kept in combinations(inner, n):
            ends = (0, *kept, len(widths) - 1)
            parts = [tuple(widths[a : b + 1]) for a, b in pairwise(ends)]
            ones = [(part[0], part[-1]) for part in parts]
            pays = all(
                macs(one) <= macs(part) and stored(one) <= stored(part) for one, part in zip(ones, parts, strict=True)
            )
            if pays:
                allowed.append(
                    (sum(map(macs, ones)), sum(map(macs, ones)), len(ones))
                )  # at one position, MACs are weights
    (plan,) = plans(model)
    positions = plan.expense.macs[1]  # of the smallest map: one position
    assert (positions, plan.expense.weights, plan.expense.nodes) == min(allowed)


def test_one_narrow_middle() -> None:
    widths = (16, 16, 16, 2, 16, 16, 16)
    (plan,) = plans(nn.Sequential(*[nn.Conv2d(a, b, 1) for a, b in pairwise(widths)]))
    assert [[p.name for p in primitives(merge.elements)] for merge in plan.merges] == [["0", "1", "2"], ["3", "4", "5"]]


@pytest.mark.parametrize("build", [zoo.mobilenetv2_tiny, lambda: torchvision.models.mobilenet_v2(weights=None)])
def test_no_bottleneck_of_mobilenetv2_is_merged(build: object) -> None:
    """Each merge has one convolution: the norm behind it is all that goes."""
    merges = [merge for plan in plans(scramble_(build())) for merge in plan.merges]  # type: ignore[operator]
    assert len(merges) > 30
    assert {sum(p.layer for p in primitives(merge.elements)) for merge in merges} == {1}


def test_what_costs_more_in_words() -> None:
    one, two = Expense((8, 2), 3, 1), Expense((4, 2), 3, 2)
    assert one.grows(two) == "one layer would take 2 times the multiply-accumulates"
    assert one.grows(Expense()) == "one layer would take 8 multiply-accumulates"
    assert Expense((4, 2), 2, 1, 2).grows(two) == "one layer would store 4 numbers, they 3"
    assert two.grows(one) is None
    assert two < one < one + two


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.BatchNorm2d(4)), "no convolution or linear layer is among them"),
        (nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(4, 4, 1)), "'1' takes 4 channels and gets 8"),
        (nn.Sequential(nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 1, groups=8)), "one layer would store 24 numbers, they 40"),
    ],
)
def test_reasons(model: nn.Module, reason: str) -> None:
    found = [refusal.reason for plan in plans(model) for refusal in plan.refusals]
    assert found == [reason] or reason.startswith("one layer")


def test_large_kernels_have_sizes() -> None:
    (plan,) = plans(nn.Sequential(nn.Conv1d(1, 2, 5000), nn.BatchNorm1d(2)))
    assert len(plan.merges) == 1
    assert plan.expense.macs == (2 * 5000 * 15001, 2 * 5000)
    assert torch.is_grad_enabled()
