"""Remove what is the identity in eval mode.

    y = dropout(x); y = identity(x)     =>     y = x

Keeps: the function in eval mode, all other nodes.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from nbcompile.core.graph import passes_through
from nbcompile.passes.base import Pass, PassResult


@dataclass(frozen=True)
class RemoveIdentity(Pass):
    """Removes identities and dropout."""

    name: ClassVar[str] = "remove-identity"

    def call(self, gm: fx.GraphModule) -> PassResult:
        """Let the readers of an identity read its input."""
        removed = []
        for node in list(gm.graph.nodes):
            # .contiguous() is the identity on values, but a later .view() may need what it does to the memory
            if passes_through(gm, node) and node.op != "call_method":
                node.replace_all_uses_with(node.all_input_nodes[0])
                gm.graph.erase_node(node)
                removed.append(node.name)
        return PassResult(gm, tuple(removed))
