"""What a layer is said to cost is what torch counts, and two costs compare as the law says."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings

from nbcompile.core.affine.cost_law import Expense, one_layer
from nbcompile.core.affine.to_layer import to_layer, why_no_one_layer
from nbcompile.core.algebra import AffineMap
from nbcompile.core.cost import cost
from tests.core.algebra.maps import any_map, fitting, make


@settings(max_examples=60)
@given(any_map())
def test_a_layer_costs_what_torch_counts(m: AffineMap) -> None:
    g = m.geometry
    assume(why_no_one_layer(g) is None)
    sizes = fitting((m,)) if g.axes else [()]
    assume(sizes)
    layer = to_layer(m, torch.empty(0, dtype=torch.float64))
    expense = one_layer(g, (sizes[-1], sizes[0]))
    counted = [cost(layer, torch.rand(1, g.inputs, *size, dtype=torch.float64)).macs for size in (sizes[-1], sizes[0])]
    assert expense.macs == tuple(counted)
    assert expense.weights == layer.get_parameter("weight").numel()
    assert expense.vectors == (g.outputs if g.bias else 0)
    assert expense.stored == sum(p.numel() for p in layer.parameters())
    assert expense.nodes == 1


def test_a_single_size_is_both() -> None:
    g = make(2, 3, []).geometry
    assert one_layer(g, ((),)).macs == (6, 6)


COSTS = Expense((8, 4), 3, 2, 1)


@pytest.mark.parametrize(
    ("ours", "less", "why"),
    [
        (COSTS, False, None),
        (replace(COSTS, macs=(7, 9)), True, "one layer would take 2.25 times the multiply-accumulates"),
        (replace(COSTS, macs=(9, 0)), False, "one layer would take 1.12 times the multiply-accumulates"),
        (replace(COSTS, macs=(8, 3)), True, None),
        (replace(COSTS, weights=2), True, None),
        (replace(COSTS, weights=4), False, "one layer would store 5 numbers, they 4"),
        (replace(COSTS, weights=2, vectors=3), True, "one layer would store 5 numbers, they 4"),
        (replace(COSTS, weights=2, vectors=2), True, None),
        (replace(COSTS, nodes=1), True, None),
        (replace(COSTS, nodes=3), False, None),
        (replace(COSTS, vectors=0), False, None),  # a bias less makes nothing less
        (Expense((8, 4), 0, 0, 0), True, None),
    ],
)
def test_the_order_of_what_counts(ours: Expense, less: bool, why: str | None) -> None:
    assert (ours < COSTS) is less
    assert ours.grows(COSTS) == why


def test_what_takes_nothing_before() -> None:
    assert Expense((1000, 0)).grows(Expense()) == "one layer would take 1,000 multiply-accumulates"
    assert Expense((0, 1000)).grows(Expense()) == "one layer would take 1,000 multiply-accumulates"
    assert Expense(vectors=1000).grows(Expense()) == "one layer would store 1,000 numbers, they 0"


def test_costs_add_up() -> None:
    total = COSTS + Expense((1, 2), 10, 20, 30)
    assert (total.macs, total.weights, total.nodes, total.vectors, total.stored) == ((9, 6), 13, 22, 31, 44)
    assert isinstance(sum([COSTS, COSTS], Expense()), Expense)
