"""What a network keeps from call to call, and whether its output depends on it: a graph keeps nothing."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx, nn

from nbcompile.core.graph.aliasing import Aliasing
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
    nodes, before = {id(x): node for node, x in first.seen.items()}, _Sources(first, root)
    told = [name for name, x in _kept(root, first.kept) if id(x) in nodes and before.reached_by_inputs(nodes[id(x)])]
    return bool(told) and any(
        node.op == "get_attr" and (str(node.target) in told or str(node.target) in second.constants)
        for node in _Sources(second, root).behind(second.graph.output_node())
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


class _Sources:
    """What the values of a recorded run are made of."""

    def __init__(self, run: Recording, root: nn.Module) -> None:
        holder = nn.Module()
        holder.__dict__.update(root.__dict__, _buffers={**root._buffers, **run.constants})
        self._aliasing = Aliasing(fx.GraphModule(holder, run.graph))

    def reached_by_inputs(self, value: fx.Node) -> bool:
        """Whether the values of the inputs reach it; their sizes may."""
        return any(node.op == "placeholder" for node in self.behind(value))

    def behind(self, value: fx.Node) -> set[fx.Node]:
        """The nodes whose values it is made of, and those that write into the memory of one."""
        found, stack = {value}, [value]
        while stack:
            node = stack.pop()
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            count = _READS_NO_VALUES.get(name) if node.op in ("call_function", "call_method") else None
            sources = [*node.all_input_nodes[:count], *self._aliasing.writing(node)]
            new = [source for source in sources if source not in found and NUMBER not in source.meta]
            found.update(new)
            stack += new
        return found
