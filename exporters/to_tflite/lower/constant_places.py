"""Masks and repeats that do not depend on the input, as the places that they choose.

How many elements ``x[:, torch.arange(6) < 4]`` or ``x.repeat_interleave(torch.tensor([2, 1, 3]), 1)`` has, only values
tell, and torch.export looks at none.
"""

import copy
import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn


def with_constant_places(graph: nn.Module) -> nn.Module:
    """``graph``, or what shares its modules and has such choices made; what is no graph of torch.fx is left alone."""
    if not isinstance(graph, fx.GraphModule) or not any(map(_chosen, graph.graph.nodes)):
        return graph
    made = fx.GraphModule(graph, copy.deepcopy(graph.graph), type(graph).__name__)
    constants = _Constants(made)
    for node in list(made.graph.nodes):
        if choice := _chosen(node):
            choice(node, constants)
    made.recompile()
    return made


class _Constants:
    """What nodes give that depend on no input."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.known: dict[fx.Node, Any] = {}

    def value(self, x: Any) -> Any:
        """Of a node, or of what may hold nodes; None where it depends on an input, or is drawn at random."""
        nodes: list[fx.Node] = []
        fx.node.map_arg(x, nodes.append)
        if any(self._of(node) is None for node in nodes):
            return None
        return fx.node.map_arg(x, self._of)

    def _of(self, node: fx.Node) -> Any:
        if node not in self.known:
            self.known[node] = self._computed(node)
        return self.known[node]

    def _computed(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.graph)
        if node.op not in ("call_function", "call_method") or node.is_impure():
            return None
        given = self.value((node.args, node.kwargs))
        if given is None:
            return None
        args, kwargs = given
        with torch.no_grad():
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return cast(Callable[..., Any], node.target)(*args, **kwargs)

    def put(self, node: fx.Node, places: Tensor) -> fx.Node:
        """``places`` as a buffer that is read before ``node``."""
        name = f"places_of_{node.name}_{len(self.known)}"
        self.graph.register_buffer(name, places)
        with self.graph.graph.inserting_before(node):
            made = self.graph.graph.get_attr(name)
        self.known[made] = places
        return made


def _chosen(node: fx.Node) -> Callable[[fx.Node, _Constants], None] | None:
    """How to make the choice of ``node``, if it may be one."""
    if node.op == "call_function" and node.target is operator.getitem and _items(node):
        return _masked
    if node.target in ("repeat_interleave", torch.repeat_interleave) and len(node.args) > 1:
        return _repeated if isinstance(node.args[1], fx.Node) else None
    return None


def _items(node: fx.Node) -> tuple[Any, ...]:
    """What ``node`` takes elements at, if that holds a node."""
    at = node.args[1]
    items = tuple(at) if isinstance(at, tuple | list) else (at,)
    return items if any(isinstance(item, fx.Node) for item in items) else ()


def _masked(node: fx.Node, constants: _Constants) -> None:
    items: list[Any] = []
    for item in _items(node):
        mask = constants.value(item) if isinstance(item, fx.Node) else None
        if isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.ndim:
            items += [constants.put(node, places) for places in mask.nonzero(as_tuple=True)]
        else:
            items.append(item)
    node.update_arg(1, tuple(items))


def _repeated(node: fx.Node, constants: _Constants) -> None:
    x, repeats, *rest = node.args
    dim, times = rest[0] if rest else node.kwargs.get("dim"), constants.value(repeats)
    if not isinstance(times, Tensor) or not isinstance(dim, int) or times.ndim != 1 or len(times) == 1:
        return
    places = torch.arange(len(times)).repeat_interleave(times)
    with node.graph.inserting_before(node):
        made = node.graph.call_function(torch.index_select, (x, dim, constants.put(node, places)))
    made.meta = node.meta
    node.replace_all_uses_with(made)
    node.graph.erase_node(node)
