"""The facts of the table, checked by running: every function, method and module of every row."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from nbcompile.core.graph.operators import OPERATORS, UNKNOWN, Operator, called, is_foreign, named, of_class, of_module
from tests.core.graph.samples import UNRUN, Call, functions, modules

pytestmark = pytest.mark.filterwarnings("ignore:.*upsample.*is deprecated", "ignore:ComplexHalf support")


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors(part)


def same(y: Tensor, z: Tensor, within: float = 1e-9) -> bool:
    return y.shape == z.shape and torch.allclose(y, z, rtol=within, atol=within)


def reached(call: Call, x: Tensor, place: Any) -> Tensor:
    """Which output elements change with the input at ``place``; no activation is constant between these two."""
    one, other = x.clone(), x.clone()
    one[place], other[place] = 0.2, 0.8
    return call(one) != call(other)


def stays_at(call: Call, x: Tensor, *places: Any) -> bool:
    """Whether what is at each place changes what is there, and nothing else."""
    for place in places:
        changes = reached(call, x, place)
        there = bool(changes[place].any())
        changes[place] = False
        if not there or bool(changes.any()):
            return False
    return True


def affine(call: Call, x: Tensor) -> bool:
    z = x.flip(0)
    return same(call(x + z) + call(0 * x), call(x.clone()) + call(z.clone()))


def alike(call: Call, x: Tensor) -> bool:
    """Whether channels are treated alike."""
    return same(call(x.flip(1)), call(x.clone()).flip(1))


def shares(call: Call, x: Tensor) -> bool:
    mine = x.clone()
    return any(y.untyped_storage().data_ptr() == mine.untyped_storage().data_ptr() for y in tensors(call(mine)))


def differs(call: Call, x: Tensor) -> bool:
    torch.manual_seed(0)
    one = [y.clone() for y in tensors(call(x.clone()))]
    pairs = zip(one, tensors(call(x.clone())), strict=True)
    return any(not torch.equal(*(v.cdouble() if v.is_complex() else v for v in pair)) for pair in pairs)


def last_place(x: Tensor) -> tuple[int, ...]:
    return tuple(n - 1 for n in x.shape)


def between(y: Tensor) -> bool:
    return 0 <= float(y.min()) < 0.2 and 0.8 < float(y.max()) <= 1


def pools(module: Any, x: Tensor) -> bool:
    """Whether the output's size follows from the three attributes."""
    windows = (getattr(module, name, 1) for name in ("kernel_size", "stride", "padding"))
    each = (v if isinstance(v, tuple) else (v,) * 3 for v in windows)
    sizes = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(x.shape[2:], *each, strict=False)]
    return list(module(x).shape[2:]) == sizes


CHECKS: dict[str, Callable[[Call, Tensor], bool]] = {
    "activation": lambda f, x: not affine(f, x),
    "elementwise": lambda f, x: stays_at(f, x, (0, 1, 2, 3), (1, 4, 6, 0)) and f(x.clone()).shape == x.shape,
    "per_channel": lambda f, x: not alike(f, x),
    "channelwise": lambda f, x: stays_at(f, x, (slice(None), 0), (slice(None), 2)),
    "scales": lambda f, x: all(same(f(s * x), s * f(x.clone())) for s in (0.3, 2.6)),
    "keeps_rank": lambda f, x: f(x.clone()).ndim == x.ndim,
    "reshapes": lambda f, x: torch.equal(f(x.clone()).flatten(), x.flatten()),
    "view": shares,
    "identity": lambda f, x: torch.equal(f(x.clone()), x),
    "gate": lambda f, x: between(f(9 * x)),
    "layer": lambda f, x: affine(f, x) and int(reached(f, x, last_place(x)).sum()) > 3,
    "creates": lambda f, x: isinstance(f(x), Tensor),
    "metadata": lambda f, x: not isinstance(f(x), Tensor) and f(x) == f(-x),
}


def wrong(row: Operator) -> Iterator[str]:
    """What ``row`` says that is not so, and what it does not say that it must."""
    for form, call, x in (*functions(row), *modules(row)):
        in_place = form != "__len__" and (form.endswith("_") or form[1:] in row.python)  # relu_, iadd

        def seeded(x: Tensor, call: Call = call) -> Any:
            torch.manual_seed(0)
            return call(x)

        yield from (
            f"{form}: not {fact}" for fact, check in CHECKS.items() if getattr(row, fact) and not check(seeded, x)
        )
        if row.broadcasts and not in_place and call(x[:, :1]).shape != x.shape:
            yield f"{form}: not broadcasts"
        if row.elementwise and not row.per_channel and not alike(seeded, x):
            yield f"{form}: per_channel"
        if not row.view and not in_place and shares(call, x):
            yield f"{form}: view"
        if row.pooling and isinstance(call, nn.Module) and not pools(call, x):
            yield f"{form}: not pooling"
    for form, call, x in (*functions(row, training=True), *modules(row, training=True)):
        if row.random != differs(call, x):
            yield f"{form}: random or not"
        if row.norm and isinstance(call, nn.Module) and not same(call(3 * x), call(x), 1e-2):
            yield f"{form}: not norm"


@pytest.mark.parametrize("row", [row for row in OPERATORS if row.name not in UNRUN], ids=lambda row: row.name)
def test_what_a_row_says(row: Operator) -> None:
    assert list(functions(row)) or list(modules(row))
    assert list(wrong(row)) == []


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        *[("linear", "activation"), ("softmax", "elementwise"), ("relu", "per_channel"), ("softmax", "channelwise")],
        *[("relu6", "scales"), ("mean", "keeps_rank"), ("relu", "broadcasts"), ("transpose", "reshapes")],
        *[("relu", "view"), ("relu", "identity"), ("tanh", "gate"), ("adaptive_max_pool2d", "pooling")],
        *[("avg_pool2d", "layer"), ("relu", "layer"), ("avg_pool2d", "norm"), ("size", "creates"), ("neg", "metadata")],
        *[("relu", "random"), ("prelu", "per_channel"), ("flatten", "view"), ("dropout", "random")],
    ],
)
def test_a_wrong_fact_is_seen(name: str, fact: str) -> None:
    row = named(name)
    assert list(wrong(row)) == []
    facts: Any = {fact: not getattr(row, fact)}
    assert list(wrong(replace(row, **facts)))


def test_a_form_is_in_one_row() -> None:
    for forms in ([f for row in OPERATORS for f in set(row.functions())], [m for r in OPERATORS for m in r.methods()]):
        assert len(forms) == len(set(forms))
    assert len({row.name for row in OPERATORS}) == len(OPERATORS)


def test_every_view_of_aten_is_in_the_table() -> None:
    """ATen says of each operator whether its result may be its input."""
    sparse = {"indices", "values", "crow_indices", "col_indices", "ccol_indices", "row_indices", "coalesce"}
    views = {
        schema.name.removeprefix("aten::")
        for schema in torch._C._jit_get_all_schemas()
        if any(value.alias_info is not None and not value.alias_info.is_write for value in schema.returns)
    }
    public = {name for name in views if callable(getattr(torch, name, None)) or callable(getattr(Tensor, name, None))}
    named = {"align_to", "refine_names", "rename"}  # torch 2.9 has views that name dimensions
    public -= {"slice_inverse", *sparse, *named}
    assert len(public) > 50
    assert sorted(name for name in public if not name.startswith("_") and not _method_or_function(name).view) == []


def test_every_drawing_operator_of_aten_is_in_the_table() -> None:
    drawing = {"rrelu_with_noise", "lstm", "gru", "rnn_tanh", "rnn_relu", "miopen_rnn"}  # modules call these
    for name in dir(torch.ops.aten):
        packet = getattr(torch.ops.aten, name)
        overloads = [getattr(packet, one) for one in packet.overloads()] if hasattr(packet, "overloads") else []
        random = any(torch.Tag.nondeterministic_seeded in overload.tags for overload in overloads)
        if random and (hasattr(torch, name) or hasattr(Tensor, name)) and not name.startswith("_"):
            assert name in drawing or _method_or_function(name).random, name


def _method_or_function(name: str) -> Operator:
    graph = fx.Graph()
    node = graph.call_method(name, (graph.placeholder("x"),))
    does = called(node)
    return called(graph.call_function(getattr(torch, name))) if does is UNKNOWN and hasattr(torch, name) else does


class Plain(nn.MaxPool2d):
    """What it derives from."""


class Own(nn.MaxPool2d):
    def forward(self, x: Tensor) -> Tensor:
        return x


class OwnConvolution(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return x


def test_a_class_with_a_forward_of_its_own_is_unknown() -> None:
    assert of_module(nn.MaxPool2d(2)) is of_module(Plain(2)) is named("max_pool2d")
    assert of_module(Own(2)) is of_module(OwnConvolution(2, 2, 1)) is of_module(nn.Sequential()) is UNKNOWN
    assert of_class(Own) is named("max_pool2d")
    assert of_class(nn.Module) is UNKNOWN


def test_what_a_node_calls() -> None:
    graph = fx.Graph()
    x = graph.placeholder("add")  # a name alone says nothing
    nodes = [graph.call_function(F.relu, (x,)), graph.call_method("relu_", (x,)), graph.call_function(abs, (x,))]
    assert [called(node) for node in nodes] == [named("relu"), named("relu"), UNKNOWN]
    assert called(x) is called(graph.call_module("add", (x,))) is UNKNOWN


@pytest.mark.parametrize(
    ("target", "foreign"),
    [(torch.relu, False), (F.relu, False), (abs, False), (reached, True), (torch.ops.aten.relu.default, True)],
)
def test_whose_function_it_is(target: Any, foreign: bool) -> None:
    assert is_foreign(fx.Graph().call_function(target)) is foreign
