"""What a network keeps from call to call, and whether its output depends on it: a graph keeps nothing."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx, nn

from nbcompile.core.tracing.functions import says_that_it_writes
from nbcompile.core.tracing.recording import Recording
from nbcompile.core.tracing.values import NUMBER, tensors_within

_READS_NO_VALUES = {
    **dict.fromkeys(("type_as", "expand_as", "view_as", "reshape_as", "to"), 1),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "getattr"), 0),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"), 0),
}
"""Functions of which so many tensors count, the first ones; of the others the shape, the dtype or the device does."""


def kept_from_call_to_call(first: Recording, second: Recording) -> bool:
    """Whether a call of a network depends on the inputs of the call before.

    That two calls give the same for the same inputs does not tell: what is kept may not show for these, as behind an
    activation that lets nothing of it pass.

    Args:
        first: a call that changes what the modules hold, with the root as it has left it.
        second: of that root, on the same inputs.
    """
    root = first.root
    if root is None:
        return False
    if second.refusal is not None or _differ_in_numbers(first, second):
        return True
    nodes = {id(x): node for node, x in first.seen.items()}
    told = [name for name, x in _kept(root, first.kept) if id(x) in nodes and _depends_on_inputs(nodes[id(x)])]
    return bool(told) and any(
        node.op == "get_attr" and (str(node.target) in told or str(node.target) in second.constants)
        for node in _read(second.graph)
    )


def _kept(root: nn.Module, kept: list[tuple[str, str]]) -> Iterator[tuple[str, Tensor]]:
    for name, key in kept:
        module = root.get_submodule(name)
        value = module._buffers.get(key, module._parameters.get(key, vars(module).get(key)))
        yield from ((f"{name}.{key}".lstrip("."), x) for x in tensors_within(value))


def _differ_in_numbers(first: Recording, second: Recording) -> bool:
    """Whether both make the same calls, and not with the same numbers."""
    (one, ones), (other, others) = _calls(first.graph), _calls(second.graph)
    return one == other and ones != others


def _calls(graph: fx.Graph) -> tuple[list[Any], list[Any]]:
    place = {node: f"%{i}" for i, node in enumerate(graph.nodes)}
    named = [node for node in graph.nodes if node.op != "get_attr"]
    targets = [(node.op, node.target) for node in named]
    return targets, [repr(fx.node.map_arg((node.args, node.kwargs), place.__getitem__)) for node in named]


def _depends_on_inputs(node: fx.Node) -> bool:
    """Whether the values of the inputs reach it; their sizes may. What was written into, they may reach."""
    if node.op == "get_attr":
        return True
    seen, stack = {node}, [node]
    while stack:
        one = stack.pop()
        if one.op == "placeholder":
            return True
        name = one.target if isinstance(one.target, str) else getattr(one.target, "__name__", "")
        count = _READS_NO_VALUES.get(name) if one.op.startswith("call_") and one.op != "call_module" else None
        sources = one.all_input_nodes[:count]
        new = [source for source in sources if source not in seen and NUMBER not in source.meta]
        seen.update(new)
        stack += new
    return False


def _read(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that the output is made of, and what is written into these."""
    found: set[fx.Node] = set()
    stack = list(graph.find_nodes(op="output"))
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            writers = [user for user in node.users if _writes(user) and user.all_input_nodes[0] is node]
            stack += [*node.all_input_nodes, *writers]
    return found


def _writes(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return says_that_it_writes(name, node.kwargs) or name in ("setitem", "__setitem__") or name.startswith("i")
