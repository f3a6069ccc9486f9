"""Chains, sums and concatenations: what belongs to one region, and what keeps nodes apart."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, fx, nn
from torch.nn import functional as F

from nbcompile.core.affine.chains import Chain, Join, nodes_of, primitives
from nbcompile.core.affine.lifter import Lifter
from nbcompile.core.affine.primitive import Primitive
from nbcompile.core.affine.regions import Regions
from nbcompile.core.graph.nodes import asks_metadata
from nbcompile.core.graph.operators import SPLITS, called
from tests.core.affine.lifts import Written, conv, lifter
from tests.core.affine.networks import Drawn, networks, run

Forward = Callable[[Any, Tensor], Any]


def text(chain: Chain) -> str:
    """``x > a > (b + 2*c)``: the base, then the elements; a sum in round brackets, a concatenation in square ones."""
    return " > ".join([chain.base.name, *map(_text, chain.elements)])


def _text(element: Primitive | Join) -> str:
    if isinstance(element, Primitive):
        return element.node.name
    if element.dim is not None:
        return f"[{' | '.join(map(text, element.branches))}]@{element.dim}"
    terms = zip(element.factors, element.branches, strict=True)
    return f"({' + '.join(f'{f:g}*{text(b)}' if f != 1 else text(b) for f, b in terms)})"


def regions(forward: Forward) -> Regions:
    layers = {"a": conv(3), "b": conv(), "c": conv(), "d": nn.Conv1d(4, 4, 1), "n": nn.BatchNorm2d(4)}
    return Regions(lifter(Written(forward, f=torch.rand(4, 1, 1), **layers)))


def chains(forward: Forward) -> dict[str, str]:
    return {node.name: text(chain) for node, chain in regions(forward).chains.items()}


def sums(forward: Forward) -> dict[str, list[str]]:
    return {node.name: [text(term) for term in one.terms] for node, one in regions(forward).sums.items()}


def let(value: Any, then: Callable[[Any], Any]) -> Any:
    """A local name in a lambda."""
    return then(value)


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda m, x: m.n(m.a(x)), {"n": "x > a > n"}),
        (lambda m, x: m.b(F.relu(m.a(x))), {"a": "x > a", "b": "relu > b"}),
        (lambda m, x: let(m.a(x), lambda y: m.b(y) + F.relu(y)), {"a": "x > a", "b": "a > b"}),
        (lambda m, x: (m.a(x), m.b(x)), {"a": "x > a", "b": "x > b"}),
        (lambda m, x: m.d(m.a(x)), {"a": "x > a", "d": "a > d"}),  # no number of axes fits both
        (lambda m, x: m.b(torch.split(m.a(x), 4, 1)[0]), {"b": "x > a > getitem > b"}),
        (lambda m, x: torch.stack(torch.split(m.a(x), 2, 1)), {"a": "x > a"}),
    ],
)
def test_chains_go_on_while_nothing_else_reads(forward: Forward, expected: dict[str, str]) -> None:
    assert chains(forward) == expected


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        # a norm keeps shape and dtype: who asks what it is applied to can ask it
        (lambda m, x: let(m.a(x), lambda y: m.n(y).view(y.shape)), {"n": "x > a > n"}),
        (lambda m, x: let(m.a(x), lambda y: m.b(y).view(y.shape)), {"a": "x > a", "b": "a > b"}),
        (lambda m, x: let(m.a(x), lambda y: (m.n(y) * m.f).view(y.shape)), {"mul": "x > a > n > mul"}),
        # a convolution does not: what is asked stays in front of it
        (lambda m, x: let(m.a(x), lambda y: m.b(m.n(y)).view(y.shape)), {"n": "x > a > n", "b": "n > b"}),
        (
            lambda m, x: let(m.a(x), lambda y: let(m.n(y), lambda z: (m.b(z) + z).view(y.shape))),
            {"n": "x > a > n", "add": "n > (n > b + n)"},
        ),
    ],
)
def test_who_asks_for_a_shape(forward: Forward, expected: dict[str, str]) -> None:
    assert chains(forward) == expected


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda m, x: m.a(x) + m.b(x), {"add": "x > (x > a + x > b)"}),
        (lambda m, x: torch.add(input=m.a(x), other=m.b(x)), {"add": "x > (x > a + x > b)"}),
        (lambda m, x: m.a(x) - m.b(x), {"sub": "x > (x > a + -1*x > b)"}),
        (lambda m, x: torch.add(m.a(x), m.b(x), alpha=2), {"add": "x > (x > a + 2*x > b)"}),
        (lambda m, x: torch.sub(m.a(x), m.b(x), alpha=3), {"sub": "x > (x > a + -3*x > b)"}),
        (lambda m, x: m.c(m.n(x) + m.a(x) + x), {"c": "x > (x > n + x > a + x) > c"}),
        (lambda m, x: m.a(x) - (m.b(x) - m.c(x)), {"sub_1": "x > (x > a + -1*x > b + x > c)"}),
        (
            lambda m, x: torch.add(x, torch.add(m.a(x), m.b(x), alpha=2), alpha=-3),
            {"add_1": "x > (x + -3*x > a + -6*x > b)"},
        ),
        (lambda m, x: let(m.a(x), lambda y: m.c(m.b(y) + y)), {"c": "x > a > (a > b + a) > c"}),
        (
            lambda m, x: let(m.a(x), lambda y: m.c(m.b(y) + y) + F.relu(y)),  # the base is read outside, too
            {"a": "x > a", "c": "a > (a > b + a) > c"},
        ),
        (
            lambda m, x: let(m.b(x) + x, lambda y: m.a(y) + F.relu(y)),
            {"add": "x > (x > b + x)", "a": "add > a"},
        ),
        (lambda m, x: m.a(x + x), {"a": "x > (x + x) > a"}),
        (lambda m, x: let(m.a(x), lambda y: y + y), {"add": "x > a > (a + a)"}),
        (lambda m, x: let(m.a(x), lambda y: m.b(y) + m.c(y)), {"add": "x > a > (a > b + a > c)"}),
        (lambda m, x: let(m.a(x) + m.b(x), lambda y: y + m.c(y)), {"add_1": "x > (x > a + x > b) > (add + add > c)"}),
        # the same operators where nothing joins
        (lambda m, x: m.a(x) - m.b(F.relu(x)), {"a": "x > a", "b": "relu > b"}),
        (lambda m, x: m.a(x) + m.b(F.relu(x)), {"a": "x > a", "b": "relu > b"}),
        (lambda m, x: torch.add(m.a(x), m.b(x), alpha=x.shape[0]), {"a": "x > a", "b": "x > b"}),
        (lambda m, x: m.a(x) + m.d(x), {"a": "x > a", "d": "x > d"}),
        (
            lambda m, x: torch.add(m.a(x), m.b(x) + m.c(F.relu(x)), alpha=2),
            {"a": "x > a", "b": "x > b", "c": "relu > c"},
        ),
        (lambda m, x: m.a(x) * m.b(x), {"a": "x > a", "b": "x > b"}),
    ],
)
def test_sums_of_chains_that_start_at_one_value(forward: Forward, expected: dict[str, str]) -> None:
    assert chains(forward) == expected
    assert sums(forward) == {}


def test_sums_of_which_only_some_terms_join() -> None:
    def two_and_two(m: Any, x: Tensor) -> Tensor:
        y = F.relu(x)
        both: Tensor = (m.a(x) + m.b(y)) + (m.c(x) + m.n(y))
        return both

    assert sums(two_and_two) == {"add_2": ["x > (x > a + x > c)", "relu > (relu > b + relu > n)"]}
    (one,) = regions(two_and_two).sums.values()
    assert [node.name for node in one.nodes] == ["add", "add_1", "add_2"]
    assert one.node.name == "add_2"

    three = lambda m, x: m.a(x) + m.b(F.relu(x)) + m.c(x)  # noqa: E731
    assert sums(three) == {"add_1": ["relu > b", "x > (x > a + x > c)"]}
    read_before = lambda m, x: let(m.a(x) + m.b(F.relu(x)), lambda y: (y + m.c(x)) * F.relu(y))  # noqa: E731
    assert sums(read_before) == {}
    alone = lambda m, x: m.a(x) + m.b(F.relu(x)) + m.c(F.silu(x))  # noqa: E731
    assert sums(alone) == {}
    assert chains(alone) == {"a": "x > a", "b": "relu > b", "c": "silu > c"}


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda m, x: torch.cat([m.a(x), m.b(x)], 1), {"cat": "x > [x > a | x > b]@1"}),
        (lambda m, x: torch.concat((m.a(x), x), dim=-3), {"concat": "x > [x > a | x]@-3"}),
        (lambda m, x: torch.cat(tensors=[m.a(x), x]), {"cat": "x > [x > a | x]@0"}),
        (
            lambda m, x: let(m.a(x), lambda y: torch.cat([y[:, 2:], y[:, :2]], 1)),
            {"cat": "x > a > [a > getitem | a > getitem_1]@1"},
        ),
        (
            lambda m, x: let(torch.chunk(m.a(x), 2, 1), lambda p: torch.cat([p[1], p[0]], 1)),
            {"cat": "x > a > [a > getitem | a > getitem_1]@1"},
        ),
        (lambda m, x: torch.cat([m.a(x) + m.b(x), x], 1), {"cat": "x > [x > (x > a + x > b) | x]@1"}),
        (lambda m, x: torch.cat([m.a(x), m.b(F.relu(x))], 1), {"a": "x > a", "b": "relu > b"}),
        (lambda m, x: let(m.a(x), lambda y: torch.cat([y, y], 1)), {"a": "x > a"}),
        (lambda m, x: torch.cat([m.a(x)], 1), {"a": "x > a"}),
        (lambda m, x: torch.cat([m.a(x), m.f[None]], 1), {"a": "x > a"}),
    ],
)
def test_concatenations(forward: Forward, expected: dict[str, str]) -> None:
    assert chains(forward) == expected


def test_what_is_changed_in_place_is_at_no_other_place() -> None:
    def changed(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        y.add_(1)
        z: Tensor = m.b(y) + y
        return z

    found = regions(changed)
    assert {node.name: text(chain) for node, chain in found.chains.items()} == {"a": "x > a", "b": "a > b"}
    assert {n.name: reason for n, reason in found.refused.items()} == {
        "add_": "it changes 'a' in place, which is read again"
    }
    assert {node.name for node in found.lifted} == {"a", "b"}

    def accumulated(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        z = y.view(y.shape)
        y += m.b(x)
        w: Tensor = y + z
        return w

    assert chains(accumulated) == {"a": "x > a", "b": "x > b"}


def test_reading_a_region() -> None:
    (chain,) = regions(lambda m, x: m.c(m.n(m.a(x)) + torch.cat([x[:, :3], x[:, 3:]], 1) + x)).chains.values()
    assert [p.name for p in primitives(chain)] == ["a", "n", "getitem", "getitem_1", "c"]
    assert [p.name for p in primitives(chain.elements[:1])] == ["a", "n", "getitem", "getitem_1"]
    nodes = [node.name for node in nodes_of(chain.elements)]
    assert nodes == ["a", "n", "getitem", "getitem_1", "cat", "add", "add_1", "c"]
    join = chain.elements[0]
    assert isinstance(join, Join)
    assert (chain.axes, join.axes, chain.then(join).elements[-1]) == ({2}, {2}, join)
    assert Chain(chain.base).axes == {0, 1, 2, 3}
    assert chain != Chain(chain.base, chain.elements)  # one is not the other, however alike


def test_nodes_that_belong_to_another_one_come_with_it() -> None:
    def filled(m: Any, x: Tensor) -> Tensor:
        y = F.pad(m.b(x), [1, 1, 1, 1])
        y[:, :, 0] = y[:, :, -1] = m.f.flatten()[:, None]
        y[:, :, :, 0] = y[:, :, :, -1] = m.f.flatten()[:, None]
        z: Tensor = m.n(y)
        return z

    (chain,) = regions(filled).chains.values()
    assert text(chain) == "x > b > pad > n"
    assert [node.name for node in nodes_of(chain.elements)] == [
        "b", "setitem", "setitem_1", "setitem_2", "setitem_3", "pad", "n",
    ]  # fmt: skip


@settings(max_examples=100)
@given(networks())
def test_nothing_outside_reads_what_is_inside(model: Drawn) -> None:
    """But for who asks for a shape alone; and no node is in two chains."""
    gm, shapes, _ = run(model)
    found = Regions(Lifter(gm, shapes))
    seen: set[fx.Node] = set()
    for end, chain in found.chains.items():
        inside = set(nodes_of(chain.elements))
        assert end in inside
        assert not inside & seen
        seen |= inside
        for node in inside - {end}:
            assert all(u in inside or asks_metadata(u) or called(u) in SPLITS for u in node.users), text(chain)
    assert {p.node for chain in found.chains.values() for p in primitives(chain)} == found.lifted
