"""What the rules of lifting ask a graph: ranks, widths, dtypes, and the maps that need no layer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from nbcompile.core.affine.primitive import Primitive
from nbcompile.core.layers import per_axis
from tests.core.affine.lifts import Written, X, conv, lifter, primitive
from tests.core.algebra.maps import run

Forward = Callable[[Any, Tensor], Any]


def named(asked: Any, name: str) -> fx.Node:
    return next(node for node in asked.gm.graph.nodes if node.name == name)


@pytest.mark.parametrize(
    ("forward", "rank"),
    [
        (lambda m, x: m.flat(x), 2),
        (lambda m, x: torch.flatten(x, 1), 2),
        (lambda m, x: torch.flatten(x, start_dim=1, end_dim=-1), 2),
        (lambda m, x: x.flatten(1), 2),
        (lambda m, x: m.relu(m.drop(m.same(m.norm(m.line(x.flatten(1)))))), 2),
        (lambda m, x: x.flatten(), None),  # all in one dimension: not told without shapes
        (lambda m, x: torch.flatten(x, 1, 2), None),
        (lambda m, x: torch.flatten(x, end_dim=-1), None),
        (lambda m, x: m.part(x), None),
        (lambda m, x: m.line(x), None),
        (lambda m, x: F.relu(x.flatten(1)), None),
        (lambda m, x: x.flatten(1)[None], None),
    ],
)
def test_ranks_that_the_graph_tells(forward: Forward, rank: int | None) -> None:
    """And with an example, the ranks that there are."""
    layers = {"flat": nn.Flatten(), "part": nn.Flatten(1, 2), "norm": nn.BatchNorm1d(3), "line": nn.Linear(140, 3)}
    layers |= {"relu": nn.ReLU(), "drop": nn.Dropout(), "same": nn.Identity()}
    asked = lifter(Written(forward, **layers))
    last = next(iter(reversed(asked.gm.graph.nodes))).all_input_nodes[0]
    assert asked.rank(last) == rank
    x = torch.rand(2, 140, dtype=torch.float64) if last.name == "line" else X
    known = lifter(Written(forward, **layers), x)
    value = forward(known.gm, x)
    assert known.rank(named(known, last.name)) == value.ndim


@pytest.mark.parametrize(
    ("forward", "axes"),
    [
        (lambda m, x: m.one(x.flatten(1)), {0}),
        (lambda m, x: m.sync(m.line(x.flatten(1))), {0}),
        (lambda m, x: m.line(m.drop(m.sync(x.flatten(1)))), {0}),
        (lambda m, x: F.linear(m.sync(x.flatten(1)), m.weight), {0}),
        (lambda m, x: m.one(x), {1}),
        (lambda m, x: m.sync(x.flatten(1)), {1, 2, 3}),  # beside no linear layer: nobody takes vectors
        (lambda m, x: m.line(m.sync(x)), {1, 2, 3}),
        (lambda m, x: m.two(x), {2}),
    ],
)
def test_norms_of_vectors_are_told_by_what_is_beside_them(forward: Forward, axes: set[int]) -> None:
    layers: dict[str, Any] = {"one": nn.BatchNorm1d(4), "two": nn.BatchNorm2d(4), "sync": nn.SyncBatchNorm(4)}
    layers |= {"line": nn.Linear(4, 4), "drop": nn.Dropout(), "weight": torch.rand(4, 4)}
    asked = lifter(Written(forward, **layers))
    node = next(n for n in asked.gm.graph.nodes if n.target in ("one", "two", "sync"))
    norm = asked.lift(node)
    assert isinstance(norm, Primitive)
    assert (norm.axes, norm.inputs, norm.constants, norm.same) == (axes, 4, 8, True)


def test_a_constant_of_more_dimensions() -> None:
    """What ``x`` has at least is told by its readers: a convolution takes three dimensions, a norm of maps four."""
    asked = lifter(Written(lambda m, x: m.n(x) + m.c(F.relu(x)), n=nn.BatchNorm2d(4), c=conv()))
    norm, convolution, relu = (named(asked, name) for name in ("n", "c", "relu"))
    assert asked.why_wider(norm, 2, 3) is None
    assert asked.why_wider(norm, 2, 4) is None
    assert asked.why_wider(norm, 2, 5) == "'n' cannot be seen to have 5 dimensions: fuse with an example_input"
    assert asked.why_wider(norm, 3, 4) is None
    assert asked.why_wider(convolution, 2, 4) == "'c' cannot be seen to have 4 dimensions: fuse with an example_input"
    assert asked.why_wider(relu, 2, 4) == "'relu' cannot be seen to have 4 dimensions: fuse with an example_input"
    known = lifter(Written(lambda m, x: m.c(x), c=conv()), X[0])
    assert known.why_wider(named(known, "c"), 2, 4) == "'c' has fewer dimensions than the 4 of its factor"
    assert known.why_wider(named(known, "c"), 2, 3) is None
    batch = lifter(Written(lambda m, x: m.c(x), c=conv()), X)
    assert batch.why_wider(named(batch, "c"), 2, 4) is None
    assert batch.why_wider(named(batch, "c"), 2, 5) == "'c' has fewer dimensions than the 5 of its factor"


@pytest.mark.parametrize(
    ("forward", "x", "floating"),
    [
        (lambda m, x: x * 2, None, False),
        (lambda m, x: m.c(x) + x * 2, None, True),
        (lambda m, x: F.linear(x, m.w) + x * 2, None, True),
        (lambda m, x: F.relu(x) + x * 2, None, True),
        (lambda m, x: torch.relu(x) + x * 2, None, False),  # takes integers
        (lambda m, x: x * 2, X, True),
        (lambda m, x: x * 2, (X > 0).long(), False),
        (lambda m, x: m.c(x.double()) + x * 2, (X > 0).long(), False),
    ],
)
def test_whether_an_input_holds_floating_point_numbers(forward: Forward, x: Tensor | None, floating: bool) -> None:
    asked = lifter(Written(forward, c=conv(), w=torch.rand(4, 5)), x)
    assert asked.floating(named(asked, "x")) is floating


@pytest.mark.parametrize(
    ("forward", "axes"),
    [
        (lambda m, x: F.avg_pool2d(x, (3, 2), 2), {2}),
        (lambda m, x: F.avg_pool2d(x, 3, stride=(1, 2), padding=(1, 0)), {2}),
        (lambda m, x: F.avg_pool2d(x, (2,)), {2}),
        (lambda m, x: F.pad(x, (2, 0, 1, 3)), {2, 3}),
        (lambda m, x: F.pad(x, (2, 1)), {1, 2, 3}),
        (lambda m, x: F.pad(x, (2, 1, 0, 3), "replicate"), {2, 3}),
        (lambda m, x: F.pad(x, (1, 1, 0, 2), value=0.5), {2, 3}),
        (lambda m, x: F.pad(x, (0, 0, 1, 1), value=-2), {2, 3}),
    ],
)
def test_pools_and_paddings_are_torchs_own(forward: Forward, axes: set[int]) -> None:
    one = primitive(forward, X)
    assert (one.axes, one.inputs, one.layer, one.constants) == (axes, None, False, 0)
    m = one.map(2, 4)
    assert one.geometry(2, 4) == m.geometry
    assert (one.name, m.weight.dtype) == (one.node.name, torch.float64)
    torch.testing.assert_close(run(m, X), forward(None, X), rtol=0, atol=1e-14)


def test_an_empty_tensor_like_the_model() -> None:
    asked = lifter(Written(lambda m, x: m.c(x), c=conv()).float())
    assert (asked.like(None).dtype, asked.like(torch.float64).dtype) == (torch.float32, torch.float64)
    bare = lifter(nn.ReLU())
    assert bare.like(None).dtype == torch.get_default_dtype()
    assert not asked.like(None).numel()


def test_one_value_an_axis() -> None:
    assert [per_axis(v, 2) for v in (3, (3,), [4, 5], (4, 5))] == [(3, 3), (3, 3), (4, 5), (4, 5)]
