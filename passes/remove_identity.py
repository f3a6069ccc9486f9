"""Remove what is the identity in eval mode, and assertions about shapes.

    y = dropout(x); y = identity(x)         =>     y = x
    y = leaky_relu(x, 1); y = prelu(x, 1)   =>     y = x
    _assert(x.ndim == 4, "expected 4-D")    =>

Keeps: the function in eval mode, on inputs that pass the assertions; all other nodes. An assertion about values stays,
and so does a leaky ReLU whose copy of its input somebody needs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from nbcompile.core.activations import Activation
from nbcompile.core.graph.aliasing import Aliasing, writes_in_place
from nbcompile.core.graph.constants import Constants
from nbcompile.core.graph.nodes import (
    activation_of,
    argument,
    asks_metadata,
    module_of,
    operator_of,
    passes_through,
    readers,
    settled,
)
from nbcompile.core.graph.operators import named
from nbcompile.passes.base import Pass, PassResult


@dataclass(frozen=True)
class RemoveIdentity(Pass):
    """Removes identities, dropout, leaky ReLUs of slope 1, and assertions about shapes."""

    name: ClassVar[str] = "remove-identity"

    def call(self, gm: fx.GraphModule) -> PassResult:
        """Let the readers of an identity read its input."""
        removed = []

        def remove(node: fx.Node) -> None:
            if node.users and node.all_input_nodes:
                node.replace_all_uses_with(node.all_input_nodes[0])
            gm.graph.erase_node(node)
            removed.append(node.name)

        for node in list(gm.graph.nodes):
            # .contiguous() is the identity on values, but a later .view() may need what it does to the memory
            dropped = passes_through(gm, node) and node.op != "call_method"
            in_place = _is_straight(gm, node) and writes_in_place(gm, node)
            if dropped or in_place or (node.target is torch._assert and _about_shapes(node)):
                remove(node)
        _each_straight_copy(gm, remove)
        for node in reversed(gm.graph.nodes):
            idle = not node.users and not node.is_impure()  # a guard is there to be asked
            if idle and removed and (_about_shapes(node) or node.op == "get_attr"):
                gm.graph.erase_node(node)
        return PassResult(gm, tuple(removed))


def _is_straight(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether ``node`` is a leaky ReLU of slope 1."""
    return operator_of(gm, node) is named("leaky_relu") and activation_of(gm, node) == Activation("leaky_relu", 1.0)


def _each_straight_copy(gm: fx.GraphModule, remove: Callable[[fx.Node], None]) -> None:
    """Remove leaky ReLUs of slopes that are exactly 1, learned ones, too, whose copy of their input nobody needs.

    Without a copy, what writes into it writes into its input, which the next decision has to know.
    """
    prelu = named("prelu")
    straight = [node for node in gm.graph.nodes if operator_of(gm, node) is prelu or _is_straight(gm, node)]
    if not straight:
        return
    aliasing = Aliasing(gm)
    constants = Constants(gm, aliasing)
    for node in straight:
        module = module_of(gm, node)
        slopes: Any = constants.value(argument(node, 1, "weight")) if module is None else getattr(module, "weight", 1)
        ones = operator_of(gm, node) is not prelu or (slopes is not None and bool(slopes.eq(1).all()))
        source = node.all_input_nodes[0]
        if ones and source not in constants and _needs_no_copy(gm, node, aliasing):
            remove(node)
            if not aliasing.written.isdisjoint((source, node)):
                aliasing = Aliasing(gm)
                constants = Constants(gm, aliasing)


def _needs_no_copy(gm: fx.GraphModule, node: fx.Node, aliasing: Aliasing) -> bool:
    """Whether nobody sees that ``node``, unlike the identity, gives memory of its own, and that without gaps."""
    source = node.all_input_nodes[0]
    borrowed = source.op in ("placeholder", "get_attr") or aliasing.shares(source)
    if not aliasing.written.isdisjoint((source, node)) and (borrowed or set(source.users) != {node}):
        return False
    return not borrowed or all(reader.target != "view" for reader in readers(settled(gm, node)))


def _about_shapes(node: fx.Node) -> bool:
    """Whether ``node`` is computed from shapes, dtypes and devices alone."""
    if node.op not in ("call_function", "call_method"):
        return False
    return asks_metadata(node) or (bool(node.all_input_nodes) and all(_about_shapes(n) for n in node.all_input_nodes))
