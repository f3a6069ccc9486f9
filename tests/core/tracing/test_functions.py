"""How a call of torch is written in a graph, what it may write to, and what it tells."""

import operator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.core.tracing.runs import Does, Net, X, check, recorded, written


@pytest.mark.parametrize(
    ("what", "node"),
    [
        (lambda m, x: m.conv(x), ("call_module", "conv")),
        (lambda m, x: x + m.weight, ("call_function", operator.add)),
        (lambda m, x: 2 - x, ("call_function", operator.sub)),
        (lambda m, x: 2 / x, ("call_function", operator.truediv)),
        (lambda m, x: x.div(2), ("call_function", operator.truediv)),
        (lambda m, x: x.div(2, rounding_mode="floor"), ("call_method", "div")),
        (lambda m, x: x[:, 1:], ("call_function", operator.getitem)),
        (lambda m, x: x.relu(), ("call_method", "relu")),
        (lambda m, x: F.relu(x), ("call_function", F.relu)),
        (lambda m, x: torch.flatten(x, 1), ("call_function", torch.flatten)),
        (lambda m, x: x.mT, ("call_function", getattr)),
        (lambda m, x: F.conv2d(x, m.conv.weight, m.conv.bias), ("call_function", F.conv2d)),
        (lambda m, x: torch.ops.aten.relu(x), ("call_function", torch.ops.aten.relu)),
        (lambda m, x: -x, ("call_function", operator.neg)),
        (lambda m, x: 2**x, ("call_function", operator.pow)),
    ],
)
def test_a_call_is_the_node_that_symbolic_tracing_writes(what: Any, node: tuple[str, Any]) -> None:
    assert written(check(Net(what), X))[-2] == node


class Doubled(torch.autograd.Function):
    """A function with a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2


def test_a_function_with_its_own_derivative_is_what_it_computes() -> None:
    check(Does(lambda m, x: Doubled.apply(x * m.weight) + 1), X)


def in_place(m: Net, x: Tensor) -> Tensor:
    y = x * 1
    y += m.weight
    y -= 1
    y *= m.weight
    y /= 2
    y[0] = 3
    y[:, 1].add_(m.weight[0])
    F.relu_(y)
    torch.nn.functional.relu(y, inplace=True)
    torch.add(y, 1, out=y)
    return y


def test_what_is_changed_in_place_is_written_down_so() -> None:
    one = check(Net(in_place), X)
    found = [node.target for node in one.graph.nodes if node.op.startswith("call")]
    assert found.count(operator.setitem) == 1
    assert [t for t in found if t in ("add_", F.relu_, torch.relu_, F.relu, torch.add)][-1] is torch.add
    assert all(x in found for x in ("add_", F.relu))


def test_a_write_into_the_input_or_through_a_view_is_seen_by_later_readers() -> None:
    def what(m: Net, x: Tensor) -> Tensor:
        view, old = x[:, 1], x * 2
        x.sub_(0.5)
        view.mul_(3)
        return m.conv(x) + old + view.mean()

    check(Net(what), X)


ASSERTING = """
def asserting(m, x):
    assert x.sum() < 1e9, f"{x.sum()}"
    assert (x == x).all()
    return x * m.weight

def raising(m, x):
    if not x.sum() < 1e9:
        raise ValueError("too much")
    return x * m.weight
"""


def test_an_assert_on_values_chooses_nothing() -> None:
    """Compiled here: pytest rewrites the asserts of test modules."""
    space: dict[str, Any] = {}
    exec(compile(ASSERTING, "asserting.py", "exec"), space)
    check(Does(space["asserting"]), X)
    one = recorded(Does(space["raising"]), X)
    assert str(one.refusal) == "asserting.py:8 in raising: it branches on a value, which depends on the inputs"
    check(Does(lambda m, x: torch._assert(x.sum() < 1e9, "too much") or x + 1), X)


def test_a_value_of_what_never_changes_may_be_read() -> None:
    """Neither inputs nor training reach it."""

    def what(m: Any, x: Tensor) -> Tensor:
        table = torch.arange(5.0).double()
        return x * table.max().item() + (1 if bool(table.sum() > 3) else 2)

    check(Does(what), X)
