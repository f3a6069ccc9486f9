"""Compute a wide convolution and the depthwise one behind it in channel groups, one group after the other.

    y = act(dw(act(conv(x))))     =>     y = cat([act(dw_i(act(conv_i(x)))) for i in range(parts)])

So only one group of the wide map in between is alive at a time, and all of ``x``: of two parts, the arena holds half.

Keeps: the function (every part computes the very sums of its channels), names: parts of ``layer`` are called
``layer.part0``, ``layer.part1``, … and run in this order. Leaves alone: values that are read elsewhere, activations
that are not elementwise or have a parameter per channel, and grouped convolutions in the first place.

Source: as MCUNetV2 (arXiv 2110.15352) computes a block patch by patch, but over channels: no border is computed twice.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, cast

import torch
from torch import Tensor, fx, nn

from nbcompile.core.affine.to_layer import to_layer
from nbcompile.core.algebra.parts import part
from nbcompile.core.errors import UsageError
from nbcompile.core.graph.nodes import (
    activation_of,
    calls,
    layer_of,
    module_of,
    operator_of,
    passes_through,
    read_directly,
    tied_to,
)
from nbcompile.core.layers import LayerSpec, lift, why_no_layer
from nbcompile.passes.base import Pass, PassResult, Skip


@dataclass(frozen=True)
class Splittable:
    """A convolution and the depthwise one that alone reads it.

    Attributes:
        nodes: from the convolution to the depthwise one and the activations after it, in order.
        depthwise: the index of the depthwise one.
    """

    nodes: tuple[fx.Node, ...]
    depthwise: int

    @property
    def name(self) -> str:
        """The qualified name of the first convolution."""
        return str(self.nodes[0].target)


@dataclass(frozen=True)
class SplitChannels(Pass):
    """Computes pairs of a convolution and a depthwise one in channel groups.

    Attributes:
        parts: qualified name of the first convolution of a pair, to the number of groups.
    """

    name: ClassVar[str] = "split-channels"

    parts: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, count in self.parts.items():
            if isinstance(count, bool) or not isinstance(count, int) or count < 2:
                raise UsageError(f"parts of '{name}' must be a whole number of 2 or more, not {count!r}")

    def call(self, gm: fx.GraphModule) -> PassResult:
        """Split the pairs that are named."""
        rewritten, skipped, how = [], [], []
        for name, count in self.parts.items():
            pair = _named(gm, name, count)
            if isinstance(pair, Splittable):
                _split(gm, pair, count)
                rewritten.append(name)
                how.append(f"{name}: in {count} parts, with {pair.nodes[pair.depthwise].target}")
            else:
                skipped.append(Skip(name, pair))
        return PassResult(gm, tuple(rewritten), tuple(skipped), tuple(how))


def splittable(gm: fx.GraphModule) -> tuple[Splittable, ...]:
    """Every pair that can be split, in graph order."""
    pairs = (_pair_at(gm, node) for node in gm.graph.nodes)
    return tuple(pair for pair in pairs if isinstance(pair, Splittable))


def _pair_at(gm: fx.GraphModule, start: fx.Node) -> Splittable | str:
    """The pair whose first convolution ``start`` is; or why there is none."""
    if reason := _why_no_part(gm, start):
        return reason
    if LayerSpec.of(cast(nn.Module, layer_of(gm, start))).groups > 1:
        return "its own channels are grouped"
    nodes, depthwise = [start], 0
    while True:
        users = tuple(nodes[-1].users)  # asking for its shape counts: no part has it
        if len(users) == 1 and len(users[0].all_input_nodes) == 1 and _elementwise(gm, users[0]):
            nodes.append(users[0])
        elif not depthwise and len(users) == 1 and _depthwise(gm, users[0]):
            depthwise = len(nodes)
            nodes.append(users[0])
        else:
            break
    if not depthwise:
        return "no depthwise convolution alone reads it, through elementwise activations"
    return Splittable(tuple(nodes), depthwise)


def _why_no_part(gm: fx.GraphModule, node: fx.Node) -> str | None:
    layer = layer_of(gm, node)
    if layer is None or isinstance(layer, nn.Linear):
        return "it is no convolution of this network"
    if reason := why_no_layer(layer):
        return reason
    if LayerSpec.of(layer).transposed:
        return "it is a transposed convolution"
    if len(calls(gm)[layer]) > 1:
        return f"it is called {len(calls(gm)[layer])} times"
    if other := tied_to(gm, layer):
        return f"it shares a parameter with '{other}'"
    return "other code reads its weight directly" if read_directly(gm, layer) else None


def _depthwise(gm: fx.GraphModule, node: fx.Node) -> bool:
    return _why_no_part(gm, node) is None and LayerSpec.of(cast(nn.Module, layer_of(gm, node))).depthwise


def _elementwise(gm: fx.GraphModule, node: fx.Node) -> bool:
    does = operator_of(gm, node)
    activation = activation_of(gm, node) is not None and does.elementwise and not (does.per_channel or does.random)
    return activation or passes_through(gm, node)


def _named(gm: fx.GraphModule, name: str, count: int) -> Splittable | str:
    """The pair that is to be split, or why it cannot be."""
    start = next((node for node in gm.graph.nodes if node.op == "call_module" and node.target == name), None)
    pair = "it is no convolution of this network" if start is None else _pair_at(gm, start)
    if isinstance(pair, str):
        return pair
    channels = LayerSpec.of(gm.get_submodule(name)).outputs
    return f"its {channels} channels do not divide into {count} parts" if channels % count else pair


def _split(gm: fx.GraphModule, pair: Splittable, count: int) -> None:
    """Part after part at the place of the first node: what it reads may be written to before the last one runs."""
    first, last, pieces = pair.nodes[0], pair.nodes[-1], []
    modules = {node: _parts_of(gm, node, count) for node in pair.nodes if node.op == "call_module"}
    with gm.graph.inserting_before(first):
        for i in range(count):
            value = first.all_input_nodes[0]
            for node in pair.nodes:
                source = node.all_input_nodes[0]
                made = gm.graph.node_copy(node, {source: value}.__getitem__)
                if node in modules:
                    made.target = f"{modules[node]}.part{i}"
                value = made
            pieces.append(value)
        whole = gm.graph.call_function(torch.cat, (pieces, 1))
    last.replace_all_uses_with(whole)
    for node in reversed(pair.nodes):
        gm.graph.erase_node(node)
    gm.delete_all_unused_submodules()


def _parts_of(gm: fx.GraphModule, node: fx.Node, count: int) -> str:
    """Put the parts of a module under its name; where others still call it, under a name beside it."""
    module, name = cast(nn.Module, module_of(gm, node)), str(node.target)
    parts = nn.ModuleDict({f"part{i}": _part(module, i, count) for i in range(count)})
    while len(calls(gm).get(module, ())) > 1 and name in dict(gm.named_modules(remove_duplicate=False)):
        name += "_"
    gm.set_submodule(name, parts.eval())
    return name


def _part(module: nn.Module, index: int, count: int) -> nn.Module:
    if why_no_layer(module):
        return copy.deepcopy(module)
    weight = cast(Tensor, module.weight)
    with torch.no_grad():
        return to_layer(part(lift(module, weight.dtype, weight.ndim - 2), index, count), weight)
