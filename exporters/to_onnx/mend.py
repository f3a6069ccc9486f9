"""ATen operators that PyTorch's exporter expresses wrongly, put so in others that it expresses right.

Of two it says nothing: to a bias-free ``conv3d`` it gives a bias of the wrong rank, and of ``avg_pool2d`` and
``avg_pool3d`` it loses ``divisor_override``. One it refuses that is easily put otherwise: attention without heads.
What else it cannot express it says itself.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

_aten = torch.ops.aten


def mend(program: ExportedProgram) -> None:
    """Change the graph of ``program`` in place; what it computes stays the same."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        rule = _RULES.get(node.target) if node.op == "call_function" else None
        if rule is not None:
            with graph.inserting_before(node):
                rule(graph, node, _arguments(node))
    program.graph_module.recompile()


def _arguments(node: fx.Node) -> dict[str, Any]:
    """By the names of its schema, defaults included."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    taken = target._schema.arguments
    defaults = {a.name: a.default_value for a in taken if a.has_default_value()}
    return defaults | {a.name: value for a, value in zip(taken, node.args, strict=False)} | node.kwargs


def _call(graph: fx.Graph, like: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A call with the metadata of ``like``, and the value that fits its own arguments."""
    made = graph.call_function(target, args, kwargs)
    made.meta = dict(like.meta)
    made.meta["val"] = target(*fx.map_arg(args, lambda n: n.meta["val"]), **kwargs)
    return made


def _each(value: Any, rank: int) -> list[int]:
    """``value`` for each of ``rank`` dimensions."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * rank if len(values) == 1 else values


def _padded(graph: fx.Graph, node: fx.Node, x: fx.Node, before: list[int], after: list[int]) -> fx.Node:
    """``x`` with so many zeros at both ends of its last dimensions."""
    pairs = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return _call(graph, node, _aten.constant_pad_nd.default, x, pairs) if any(pairs) else x


def _conv3d(graph: fx.Graph, node: fx.Node, given: dict[str, Any]) -> None:
    if given["bias"] is not None or given["input"].meta["val"].ndim != 5:
        return
    x, weight, padding = given["input"], given["weight"], given["padding"]
    dilation = _each(given["dilation"], 3)
    if padding == "same":  # what is left over of an odd sum lies at the end
        sums = [d * (k - 1) for d, k in zip(dilation, weight.meta["val"].shape[2:], strict=True)]
        x = _padded(graph, node, x, [n // 2 for n in sums], [n - n // 2 for n in sums])
    pads = [0] * 3 if isinstance(padding, str) else _each(padding, 3)
    stride = _each(given["stride"], 3)
    made = _call(
        graph, node, _aten.convolution.default, x, weight, None, stride, pads, dilation, False, [0] * 3, given["groups"]
    )
    _replace(graph, node, made)


def _average_pool(graph: fx.Graph, node: fx.Node, given: dict[str, Any]) -> None:
    if given["divisor_override"] is None:
        return
    x = given["self"]
    rank = 2 if node.target is _aten.avg_pool2d.default else 3
    sizes, made_sizes = (n.meta["val"].shape[-rank:] for n in (x, node))
    kernel, pads = _each(given["kernel_size"], rank), _each(given["padding"], rank)
    stride = _each(given["stride"] or kernel, rank)
    reach = [(n - 1) * s + k for n, s, k in zip(made_sizes, stride, kernel, strict=True)]
    after = [max(end - size - p, 0) for end, size, p in zip(reach, sizes, pads, strict=True)]
    x = _padded(graph, node, x, pads, after)
    mean = _call(graph, node, node.target, x, kernel, stride)
    factor = math.prod(kernel) / given["divisor_override"]
    _replace(graph, node, _call(graph, node, _aten.mul.Tensor, mean, factor))


def _attention(graph: fx.Graph, node: fx.Node, given: dict[str, Any]) -> None:
    """Attention of (batch, length, size) or (length, size) gets the one head that the exporter wants to see."""
    values, mask = [given[name] for name in ("query", "key", "value")], given["attn_mask"]
    ranks = {x.meta["val"].ndim for x in values}
    if ranks not in ({2}, {3}) or given["enable_gqa"]:
        return
    dims = [1] if ranks == {3} else [0, 1]

    def with_head(x: fx.Node) -> fx.Node:
        for dim in dims:
            x = _call(graph, node, _aten.unsqueeze.default, x, dim)
        return x

    if mask is not None and mask.meta["val"].ndim != 2:  # one of two dimensions fits as it is
        mask = with_head(mask) if mask.meta["val"].ndim == 3 else _call(graph, node, _aten.unsqueeze.default, mask, 0)
    made = _call(
        graph,
        node,
        node.target,
        *map(with_head, values),
        mask,
        given["dropout_p"],
        given["is_causal"],
        scale=given["scale"],
    )
    for dim in reversed(dims):
        made = _call(graph, node, _aten.squeeze.dim, made, dim)
    _replace(graph, node, made)


def _replace(graph: fx.Graph, node: fx.Node, made: fx.Node) -> None:
    made.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(made)
    graph.erase_node(node)


_RULES: dict[Any, Callable[[fx.Graph, fx.Node, dict[str, Any]], None]] = {
    _aten.conv3d.default: _conv3d,
    _aten.conv3d.padding: _conv3d,
    _aten.avg_pool2d.default: _average_pool,
    _aten.avg_pool3d.default: _average_pool,
    _aten.scaled_dot_product_attention.default: _attention,
}
