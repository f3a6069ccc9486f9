"""Compute once what is computed twice of the same values: common subexpression elimination.

    y = stem(x);  z = relu(stem(x))         =>     y = stem(x);  z = relu(y)

Keeps: the function in eval mode, names of other nodes, and outputs that have memory of their own. Leaves alone: values
that are changed in place or made of such, random numbers, modules with hooks, and code that is not torch's. Files of
ONNX have each of them once anyway.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from nbcompile.core.graph.aliasing import Aliasing
from nbcompile.core.graph.effects import only_gives
from nbcompile.core.graph.nodes import module_of
from nbcompile.core.graph.replace import keep_what_is_read
from nbcompile.passes.base import Pass, PassResult


@dataclass(frozen=True)
class MergeCommon(Pass):
    """Merges nodes that compute the same of the same values."""

    name: ClassVar[str] = "merge-common"

    def call(self, gm: fx.GraphModule) -> PassResult:
        """Let the readers of each such node read the first of its kind."""
        kinds: dict[tuple[object, ...], list[fx.Node]] = {}
        merged: list[str] = []
        aliasing: Aliasing | None = None
        for node in list(gm.graph.nodes):
            module = module_of(gm, node)
            key = (node.op, node.target if module is None else module, repr(node.args), repr(node.kwargs))
            alike = kinds.setdefault(key, [])
            alike.append(node)
            if len(alike) > 1:
                aliasing = aliasing or Aliasing(gm)
                one = next(one for one in alike if one is node or _may_merge(gm, one, node, aliasing))
                if one is not node:
                    node.replace_all_uses_with(one)
                    aliasing.move(node, one)
                    gm.graph.erase_node(node)
                    merged.append(alike.pop().name)
        if merged:
            keep_what_is_read(gm)
        return PassResult(gm, tuple(merged))


def _may_merge(gm: fx.GraphModule, one: fx.Node, other: fx.Node, aliasing: Aliasing) -> bool:
    """Whether nobody can tell two nodes that compute the same from one."""
    stay = aliasing.written.isdisjoint((one, other, *other.all_input_nodes))
    return stay and only_gives(gm, other) and not _both_returned(gm, one, other, aliasing)


def _both_returned(gm: fx.GraphModule, one: fx.Node, other: fx.Node, aliasing: Aliasing) -> bool:
    """Whether the two are in the memory of two outputs, of which a caller may change one."""
    returned = {aliasing.home(x) for end in gm.graph.find_nodes(op="output") for x in end.all_input_nodes}
    return aliasing.home(one) in returned and aliasing.home(other) in returned
