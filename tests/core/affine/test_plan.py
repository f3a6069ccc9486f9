from collections.abc import Callable
from itertools import combinations, pairwise
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torchvision
from hypothesis import given, settings
from torch import Tensor, nn
from torch.nn import functional as F

from nbcompile import zoo
from nbcompile.core.affine.chains import Join, primitives
from nbcompile.core.affine.cost_law import Expense
from nbcompile.core.affine.lifter import Lifter
from nbcompile.core.affine.plan import Plan
from nbcompile.core.affine.planner import Planner
from nbcompile.core.affine.regions import Regions
from nbcompile.core.errors import PreconditionError
from nbcompile.core.graph.shapes import Shapes
from nbcompile.testing import scramble_
from tests.core.affine.lifts import Written, conv
from tests.symbolic import capture


def plans(model: nn.Module, x: Tensor | None = None) -> list[Plan]:
    gm = capture(model.eval())
    lifter = Lifter(gm, Shapes(gm, None if x is None else (x,)))
    return [Planner(lifter).plan(chain) for chain in Regions(lifter).chains.values()]


def merged(plan: Plan) -> list[list[str]]:
    return [[p.name for p in primitives(merge.elements)] for merge in plan.merges]


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
    assert merged(plan) == [["0", "1", "2"], ["3", "4", "5"]]


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


def test_the_smallest_map_is_what_all_layers_fit_on() -> None:
    """Two layers without padding: 11 positions become 5, and 5 one; on the large map 224, 111, 107."""
    (plan,) = plans(nn.Sequential(nn.Conv1d(6, 2, 3, 2), nn.Conv1d(2, 6, 5), nn.BatchNorm1d(6)))
    assert merged(plan) == [["1", "2"]]
    first, second = 6 * 2 * 3, 2 * 6 * 5
    assert plan.expense == Expense((first * 111 + second * 107, first * 5 + second), first + second, 2)
    assert plan.expense.vectors == 2 + 6
    (plan,) = plans(nn.Sequential(nn.ConvTranspose2d(2, 3, 2, 2), nn.BatchNorm2d(3)))
    assert plan.expense.macs == (24 * 224**2, 24)
    (plan,) = plans(nn.Sequential(nn.Conv2d(2, 3, (100, 1)), nn.BatchNorm2d(3)))
    assert plan.expense.macs == (600 * 301 * 400, 600 * 100)  # the smallest map is square; the large one 4 times that


def test_a_norm_joins_the_layer_before_it() -> None:
    (plan,) = plans(nn.Sequential(nn.Conv2d(8, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 8, 1)))
    assert merged(plan) == [["0", "1"]]
    (plan,) = plans(nn.Sequential(nn.Conv2d(8, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Conv2d(2, 8, 1)))
    assert merged(plan) == [["0", "1"]]  # although with the other it would save a bias
    (plan,) = plans(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)))
    assert merged(plan) == [["0", "1"]]


GAMMA, X = torch.rand(4, 1, 1) + 0.5, torch.randn(2, 4, 7, 5, dtype=torch.float64)
STRETCHED = "'mul' stretches 1 channels to 4"
UNTOLD = "how many channels 'relu' has cannot be told"


@pytest.mark.parametrize(
    ("forward", "untold", "four", "one"),
    [
        # ``x * gamma`` stretches one channel to four: what the convolution takes is not what x has
        (lambda m, x: m.a(x * m.f), UNTOLD, None, UNTOLD),
        (lambda m, x: m.n(x * m.f) + m.a(x * m.f), UNTOLD, None, UNTOLD),
        (lambda m, x: m.a(x * m.f + x * m.f * 2), UNTOLD, None, UNTOLD),
        (lambda m, x: x + m.a(x * m.f), UNTOLD, None, UNTOLD),
        (lambda m, x: m.a(x + x * m.f), UNTOLD, None, UNTOLD),
        (lambda m, x: m.a(x * 2), None, None, None),
        (lambda m, x: m.a(x + x * 2), None, None, None),
        (lambda m, x: m.n(x) + m.a(x * m.f), None, None, None),
        (lambda m, x: m.a(x * m.f) + m.n(x), None, None, None),
        (lambda m, x: m.one(x) + m.a(x * m.f), STRETCHED, None, STRETCHED),
        (lambda m, x: m.a(x * m.f) + m.one(x), STRETCHED, None, STRETCHED),
        # a slice takes fewer than there are
        (lambda m, x: m.a(x[:, :4]), UNTOLD, None, None),
    ],
)
def test_how_many_channels_a_chain_starts_with(
    forward: Callable[[Any, Tensor], Any], untold: str | None, four: str | None, one: str | None
) -> None:
    """Without an example input, with four channels, and with one, where not all of these networks run."""
    layers = {"a": conv(3), "n": nn.BatchNorm2d(4), "one": conv(1, 1), "f": GAMMA}
    model = Written(lambda m, x: forward(m, F.relu(x)), **layers)
    ran = 0
    for x, expected in ((None, untold), (X, four), (X[:, :1], one)):
        try:
            (plan,) = plans(model, x)
        except PreconditionError:
            continue
        ran += 1
        reasons = [refusal.reason for refusal in plan.refusals]
        assert bool(plan.merges) == (expected is None)
        assert expected is None or reasons == [expected]
    assert ran >= 2


def test_a_merge_says_what_it_takes() -> None:
    (plan,) = plans(nn.Sequential(nn.Conv1d(6, 2, 3), nn.Conv1d(2, 8, 1), nn.BatchNorm1d(8)))
    (merge,) = plan.merges
    assert (merged(plan), merge.axes, merge.channels) == ([["1", "2"]], 1, 2)
    norm, mixed = nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, padding=1)
    (plan,) = plans(Written(lambda m, x: m.mixed(m.n(x) - m.a(x)), n=norm, a=conv(3), mixed=mixed))
    (merge,) = plan.merges
    assert (merged(plan), merge.axes, merge.channels) == ([["n", "a"]], 2, 4)


def test_plans_add_up() -> None:
    layers = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)
    one, two = plans(nn.Sequential(*layers))
    both = one + two
    assert (both.expense, both.expense.vectors) == (one.expense + two.expense, 4 + 2)
    assert both.merges == one.merges + two.merges
    alone = {"it is one layer already", "no convolution or linear layer is among them"}  # each for itself
    assert {refusal.reason for refusal in one.refusals} == alone
    assert (both.regroupings, both.refusals) == ([], one.refusals + two.refusals)
    assert (both + one).refusals == one.refusals + two.refusals + one.refusals
    assert len((both + one).merges) == 3


@pytest.mark.parametrize(
    ("forward", "names", "expense"),
    [
        (lambda m, x: m.a(x) + m.b(x), [["a", "b"]], (144, 1, 4)),  # a padded 3×3 and a 1×1 are one 3×3
        (lambda m, x: m.a(m.b(x)) + m.c(x), [], (144 + 32, 4, 12)),  # b has a bias, and a pads behind it
        (lambda m, x: torch.cat([m.a(x), m.b(x)], -3), [], (160, 3, 8)),  # 1×1 as 3×3: 128 numbers more
        (lambda m, x: torch.cat([m.b(x), m.c(x)], -3), [["b", "c"]], (32, 1, 8)),
        (lambda m, x: m.b(x) + x, [["b"]], (16, 1, 4)),
        (lambda m, x: torch.add(m.b(x) * m.f, x, alpha=3), [["b", "mul"]], (16, 1, 4)),
        (lambda m, x: m.a(F.relu(m.b(x) * m.f)), [["b", "mul"]], (16, 1, 4)),
    ],
)
def test_what_a_plan_costs(
    forward: Callable[[Any, Tensor], Any], names: list[list[str]], expense: tuple[int, int, int]
) -> None:
    plan, *_ = plans(Written(forward, a=conv(3), b=conv(), c=conv(), n=nn.BatchNorm2d(4), f=GAMMA))
    assert merged(plan) == names
    assert (plan.expense.weights, plan.expense.nodes, plan.expense.vectors) == expense


def test_a_sum_is_grouped_anew_where_some_of_its_terms_merge() -> None:
    """``first`` has a bias and ``odd`` pads behind it: one branch stays as it is, and with it one addition."""
    forward = lambda m, x: m.a(x) + m.odd(m.first(x)) + torch.add(x, m.b(x), alpha=2)  # noqa: E731
    (plan,) = plans(Written(forward, a=conv(3), b=conv(), odd=conv(3), first=conv()))
    (regrouping,) = plan.regroupings
    (merge,) = regrouping.merges
    assert plan.merges == []
    (join,) = merge.elements
    assert isinstance(join, Join)
    terms = {"".join(p.name for p in primitives(branch)): branch for branch in join.branches}
    factors = dict(zip(terms, join.factors, strict=True))
    assert factors == {"a": 1, "b": 2, "": 1}
    assert {branch.base.name for branch in terms.values()} == {"x"}
    weights = 144 + 144 + 16  # a with b and x in it, odd, first
    assert plan.expense == Expense((224**2 * weights, weights), weights, 3 + 1)
    assert plan.expense.vectors == 3 * 4
