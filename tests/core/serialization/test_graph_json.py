import math
import operator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from nbcompile.core.errors import CheckpointError
from nbcompile.core.serialization import graph_json
from nbcompile.core.serialization.graph_json import (
    NotSerialisable,
    decode_argument,
    encode_argument,
    graph_from_json,
    graph_to_json,
)


class Everything(nn.Module):
    """Every kind of node and argument."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor, factor: float = 2.0) -> dict[str, Any]:
        y = F.interpolate(self.conv(x), scale_factor=2.0, mode="nearest") * self.scale
        z = y[:, 1:, ..., None].squeeze(-1).to(torch.float64, memory_format=torch.channels_last)
        size = x.shape[-1] * 2
        clipped = torch.clamp(z, min=-math.inf, max=math.inf)
        return {"a": torch.cat([clipped, z], dim=1), "b": (y.mean((2, 3)), size), "c": [F.pad(y, (1, 1)), factor]}


def test_round_trip() -> None:
    model = Everything()
    gm = fx.symbolic_trace(model)
    graph = graph_from_json(graph_to_json(gm.graph))
    assert [(n.op, n.target, n.name, str(n.args), str(n.kwargs)) for n in graph.nodes if n.op != "placeholder"] == [
        (n.op, n.target, n.name, str(n.args), str(n.kwargs)) for n in gm.graph.nodes if n.op != "placeholder"
    ]
    x = torch.randn(1, 3, 4, 4)
    again, first = fx.GraphModule(model, graph)(x, 3.0), gm(x, 3.0)
    assert str(again) == str(first)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from(
        [torch.float16, torch.int64, torch.channels_last, torch.contiguous_format, Ellipsis, slice(1, None, 2)]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(VALUES)
def test_arguments(value: Any) -> None:
    assert decode_argument(encode_argument(value), {}) == value


def test_a_device_becomes_the_cpu() -> None:
    assert decode_argument(encode_argument(torch.device("cuda:3")), {}) == torch.device("cpu")


@pytest.mark.parametrize("value", [object(), torch.zeros(1), {1: 2}, 1j, range(3), nn.ReLU(), b"x"])
def test_arguments_that_are_not_written(value: object) -> None:
    with pytest.raises(NotSerialisable, match=f"an argument of type {type(value).__name__}"):
        encode_argument(value)


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda g, x: g.call_method("set_", (x, x)), "node 'set_': the graph calls the method 'set_', which no graph"),
        (lambda g, x: g.call_function(torch.save, (x, "f")), "node 'save': a call of save"),
        (lambda g, x: g.call_function(operator.delitem, (x, 0)), "node 'delitem': a call of delitem"),
        (lambda g, x: g.call_function(round, (x, 2)), "node 'round_1': the graph rounds to decimal places, which no"),
        (lambda g, x: g.call_function(getattr, (x, "data")), "node 'getattr_1': the graph reads the attribute .*data"),
        (lambda g, x: g.call_function(torch.relu, (x,), {"out": x}), "node 'relu': the graph writes into a tensor"),
        (lambda g, x: g.call_function(torch.relu, (object(),)), "node 'relu': an argument of type object"),
        (
            lambda g, x: g.call_module("a b", (x,)),
            "node 'a_b': the graph has a call_module called 'a b', which is no plain name",
        ),
        (lambda g, x: g.placeholder("*xs"), r"node '_?xs': the graph has a placeholder called '\*xs'"),
    ],
)
def test_writing_refuses_what_reading_would(call: Any, why: str) -> None:
    graph = fx.Graph()
    call(graph, graph.placeholder("x"))
    with pytest.raises(NotSerialisable, match=f"^{why}"):
        graph_to_json(graph)


@pytest.mark.parametrize("pattern", [graph_json.IDENTIFIER, graph_json.PATH])
@pytest.mark.parametrize(
    "name",
    [
        "",
        "__a",
        "a b",
        "a\n",
        "a;b",
        "a()",
        "a'",
        'a"',
        "a\\",
        "\u0430",
        "class",
        "None",
        "self",
        "torch",
        "a..b",
        ".a",
        "a.",
    ],
)
def test_names_that_are_refused(pattern: Any, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"^the graph has a node called .*, which is no plain name$"):
        graph_json.match(pattern, name, "node")


@pytest.mark.parametrize("name", ["features.0.conv", "my-stem.2", "_x", "a_1", "layers.stem-1.0"])
def test_paths_that_are_taken(name: str) -> None:
    assert graph_json.match(graph_json.PATH, name, "path") == name
    assert graph_json.match(graph_json.IDENTIFIER, "a_1", "node") == "a_1"
    for wrong in (f"{name}.__class__", f"__{name}", name + "." * 1, name + ".a" * 32):
        with pytest.raises(CheckpointError, match="no plain name"):
            graph_json.match(graph_json.PATH, wrong, "path")


OUT = {"op": "output", "name": "output", "target": "output", "args": {"tuple": [{"node": "x"}]}, "kwargs": {}}
IN = {"op": "placeholder", "name": "x", "target": "x", "args": {"tuple": []}, "kwargs": {}}
RELU = {"op": "call_function", "name": "y", "target": "torch.relu", "args": {"tuple": [{"node": "x"}]}, "kwargs": {}}


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([], "the graph must be a list of 1 to 6,000 nodes"),
        ({}, "the graph must be a list of 1 to 6,000 nodes"),
        ([IN], "the graph must end in its one output"),
        ([IN, OUT, RELU], "the graph must end in its one output"),
        ([IN, OUT, OUT | {"name": "again"}], "the graph must end in its one output"),
        ([IN, IN, OUT], "the graph has two nodes called 'x'"),
        ([IN, {**RELU, "kwargs": {"a b": 1}}, OUT], "the graph has a argument called 'a b', which is no plain name"),
        ([IN, {**RELU, "name": "a b"}, OUT], "the graph has a node called 'a b', which is no plain name"),
        ([IN, {**RELU, "op": "jump"}, OUT], "the graph has a node of unknown kind 'jump'"),
        ([IN, {"op": "output"}], "the graph has a malformed node: KeyError: 'name'"),
        (
            [IN, {**RELU, "kwargs": {"out": {"node": "x"}}}, OUT],
            "the graph writes into a tensor that it is given (out=), which no graph in a file may do",
        ),
        (
            [IN, {**RELU, "args": {"tuple": [{"node": "z"}]}}, OUT],
            "the graph holds an argument that cannot be read: {'node': 'z'}",
        ),
    ],
)
def test_what_is_no_graph(nodes: Any, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        graph_from_json(nodes)
    assert str(caught.value) == message
