"""Remove what is the identity in eval mode, and assertions about shapes.

    y = dropout(x); y = identity(x)         =>     y = x
    _assert(x.ndim == 4, "expected 4-D")    =>

Keeps: the function in eval mode, on inputs that pass the assertions; all other nodes. An assertion about values stays.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from nbcompile.core.graph.nodes import asks_metadata, passes_through
from nbcompile.passes.base import Pass, PassResult


@dataclass(frozen=True)
class RemoveIdentity(Pass):
    """Removes identities, dropout, and assertions about shapes."""

    name: ClassVar[str] = "remove-identity"

    def call(self, gm: fx.GraphModule) -> PassResult:
        """Let the readers of an identity read its input."""
        removed = []
        for node in list(gm.graph.nodes):
            # .contiguous() is the identity on values, but a later .view() may need what it does to the memory
            if passes_through(gm, node) and node.op != "call_method":
                node.replace_all_uses_with(node.all_input_nodes[0])
            elif not (node.target is torch._assert and _about_shapes(node)):
                continue
            gm.graph.erase_node(node)
            removed.append(node.name)
        for node in reversed(gm.graph.nodes):
            if not node.users and removed and _about_shapes(node):
                gm.graph.erase_node(node)
        return PassResult(gm, tuple(removed))


def _about_shapes(node: fx.Node) -> bool:
    """Whether ``node`` is computed from shapes, dtypes and devices alone."""
    if node.op not in ("call_function", "call_method"):
        return False
    return asks_metadata(node) or (bool(node.all_input_nodes) and all(_about_shapes(n) for n in node.all_input_nodes))
