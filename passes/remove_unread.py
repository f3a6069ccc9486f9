"""Remove what no output depends on, a branch whose result is not returned, say: dead code elimination.

    a = branch(x); b = relu_(a)         =>
    y = head(x)                         =>     y = head(x)

Keeps: the function in eval mode, names of other nodes, and whatever does more than it gives: checks of sizes and
values, code that is not torch's, modules with hooks, random numbers, which those behind them would miss, and writes
into inputs, parameters and buffers, or into memory that something is read from. Files of ONNX leave such branches out
anyway; without them the layers before them have one reader less, and can merge.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from nbcompile.core.graph.aliasing import may_alias, writes_in_place
from nbcompile.core.graph.effects import only_gives
from nbcompile.core.graph.replace import keep_what_is_read
from nbcompile.passes.base import Pass, PassResult


@dataclass(frozen=True)
class RemoveUnread(Pass):
    """Removes what no output depends on."""

    name: ClassVar[str] = "remove-unread"

    def call(self, gm: fx.GraphModule) -> PassResult:
        """Follow what is read from the outputs back to the inputs, and remove the rest."""
        if all(node.users or _stays(gm, node) for node in gm.graph.nodes):
            return PassResult(gm)
        read = set(_read(gm))
        unread = [node for node in reversed(gm.graph.nodes) if node not in read]
        for node in unread:
            gm.graph.erase_node(node)
        if unread:
            keep_what_is_read(gm)
        return PassResult(gm, tuple(node.name for node in reversed(unread)))


def _read(gm: fx.GraphModule) -> Iterator[fx.Node]:
    """All nodes on which what the graph gives and does depends."""
    memory = _memories(gm)
    writers: dict[int, list[fx.Node]] = {}
    for node in gm.graph.nodes:
        if writes_in_place(gm, node):
            writers.setdefault(id(memory[node]), []).append(node)
    stack = [node for node in gm.graph.nodes if _stays(gm, node)]
    stack += [n for some in writers.values() for n in some if any(_is_of_others(m) for m in memory[n])]
    seen = set(stack)
    while stack:
        node = stack.pop()
        yield node
        reached = {*node.all_input_nodes, *writers.get(id(memory[node]), ())} - seen
        seen |= reached
        stack += reached


def _memories(gm: fx.GraphModule) -> dict[fx.Node, set[fx.Node]]:
    """For each node those that may be in one memory with it, itself among them."""
    memory: dict[fx.Node, set[fx.Node]] = {}
    for node in gm.graph.nodes:
        memory[node] = {node}
        out = node.kwargs.get("out")
        if isinstance(out, fx.Node):
            others = [out]
        elif may_alias(gm, node):
            others = node.all_input_nodes
        else:
            others = node.all_input_nodes[:1] if writes_in_place(gm, node) else []
        for other in others:
            if memory[other] is not memory[node]:
                memory[other] |= memory[node]
                for one in memory[node]:
                    memory[one] = memory[other]
    return memory


def _is_of_others(node: fx.Node) -> bool:
    """Whether ``node`` is memory that is there before the graph runs, and after."""
    return node.op in ("placeholder", "get_attr")


def _stays(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether ``node`` may do more than to give a value and to write into one."""
    return not (only_gives(gm, node) or writes_in_place(gm, node))
