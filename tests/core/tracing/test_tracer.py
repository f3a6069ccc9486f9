"""What stays one node of a graph, and what a failing module leaves behind: nothing."""

import math
import operator
from typing import Any

import pytest
import timm.layers._fx
import torch
import torchvision
from torch import Tensor, fx, nn

from nbcompile.core.layers import Scale
from nbcompile.core.tracing.call import Call
from nbcompile.core.tracing.tracer import Tracer, is_leaf


def trace(model: nn.Module, *args: Any, **kwargs: Any) -> fx.Graph:
    return Tracer(Call.of(args, kwargs)).trace(model)


def written(graph: fx.Graph) -> list[tuple[str, Any]]:
    return [(node.op, node.target) for node in graph.nodes]


class Norm(nn.LayerNorm):
    pass


@pytest.mark.parametrize(
    ("module", "leaf"),
    [
        (nn.Conv2d(1, 1, 1), True),
        (nn.ReLU(), True),
        (Norm(3), False),
        (Scale(3, 2), False),
        (nn.Sequential(nn.ReLU()), False),
        (nn.ModuleList([nn.ReLU()]), False),
        (nn.ModuleDict({"a": nn.ReLU()}), False),
        (type("Same", (nn.Conv2d,), {})(1, 1, 1), True),  # a layer by another name
    ],
    ids=lambda v: type(v).__name__,
)
def test_leaves(module: nn.Module, leaf: bool) -> None:
    assert is_leaf(module, "it") is leaf


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        y = x * 1
        y += self.weight
        y -= 1
        y *= self.weight
        y /= 2
        y[0] = 3
        return y


def test_what_is_changed_in_place_is_written_down_so() -> None:
    """With what it is changed by: others may read it."""
    graph = trace(InPlace(), torch.ones(3))
    x, mul, weight, *changes, output = graph.nodes
    assert (x.op, mul.target, weight.target) == ("placeholder", operator.mul, "weight")
    assert [node.target for node in changes] == [
        *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem)
    ]
    assert [node.args[1] for node in changes] == [weight, 1, weight, 2, 0]
    assert output.args[0] is changes[-2]
    with torch.no_grad():
        (expected,) = (InPlace()(torch.full((3,), 5.0)),)
        assert torch.equal(fx.GraphModule(InPlace(), graph)(torch.full((3,), 5.0)), expected)


class Fails(nn.Module):
    """Writes some nodes, reads a parameter, then asks for a number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.inner = nn.Parameter(torch.ones(3)), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x) * self.weight
        return y if float(y.sum()) > 0 else x


class Around(nn.Module):
    def __init__(self, *, also: bool) -> None:
        super().__init__()
        self.fails, self.after, self.also = Fails(), nn.ReLU(), also

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(self.fails(x + 1))
        return y * self.fails.weight if self.also else y


def test_what_fails_is_one_node_and_leaves_none() -> None:
    kept = [("call_module", "fails"), ("call_module", "after")]
    head, tail = [("placeholder", "x"), ("call_function", operator.add)], [("output", "output")]
    assert written(trace(Around(also=False), torch.ones(3))) == [*head, *kept, *tail]
    with_weight = written(trace(Around(also=True), torch.ones(3)))
    assert sorted(map(str, with_weight)) == sorted(
        map(str, [*head, *kept, ("get_attr", "fails.weight"), ("call_function", operator.mul), *tail])
    )


class Called(nn.Module):
    def forward(self, x: Tensor, pair: tuple[Tensor, int], *, how: str = "", scale: Tensor | None = None) -> Tensor:
        y = x * pair[1] + pair[0]
        return y if scale is None else y * scale


def test_a_placeholder_for_every_tensor_of_the_call() -> None:
    x = torch.ones(2)
    graph = trace(Called(), x, (x, 3), how="so", scale=x)
    assert [node.name for node in graph.find_nodes(op="placeholder")] == ["x", "pair_0", "scale"]
    assert torch.equal(fx.GraphModule(nn.Module(), graph)(x, 2 * x, 5 * x), (3 * x + 2 * x) * 5)
    assert [node.name for node in trace(Called(), x, (x, 3)).find_nodes(op="placeholder")] == ["x", "pair_0"]


def test_functions_that_libraries_declare_stay_whole() -> None:
    tracer = Tracer()
    declared = [*timm.layers._fx.get_notrace_functions(), math.sqrt, torchvision.ops.nms]
    assert len(declared) > 5
    assert {id(function) for function in declared} <= tracer._autowrap_function_ids


class Same(nn.Module):
    """A buffer that is read twice is one node."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(3))
        self.again = nn.Module()
        self.again.register_buffer("table", self.table)
        self.constant = torch.ones(3)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.table + self.table * self.again.table + self.constant  # type: ignore[operator]


def test_every_tensor_is_one_node() -> None:
    graph = trace(Same(), torch.ones(3))
    assert [node.target for node in graph.find_nodes(op="get_attr")] == ["table", "constant"]
