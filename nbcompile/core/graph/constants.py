"""What in a graph does not depend on its inputs: parameters, buffers, and what is computed from them alone."""

from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from nbcompile.core.graph.aliasing import Aliasing
from nbcompile.core.graph.effects import only_gives
from nbcompile.core.graph.nodes import module_of
from nbcompile.core.graph.operators import called


class Constants:
    """The constant nodes of a graph, their values, and who reads which parameter.

    Args:
        gm: the graph.
        aliasing: of its values: what is written to, whenever, is not constant.
    """

    def __init__(self, gm: fx.GraphModule, aliasing: Aliasing) -> None:
        self._gm = gm
        self._tensors: dict[str, Tensor] = dict(gm.named_parameters(remove_duplicate=False))
        self._tensors |= gm.named_buffers(remove_duplicate=False)
        self._by_identity = {id(x): x for x in self._tensors.values()}
        self._written = aliasing.written
        self._values: dict[fx.Node, Any] = {}
        self._nodes = self._find()
        self._reads: dict[fx.Node, frozenset[int]] = {}
        for node in gm.graph.nodes:  # inputs before readers
            self._reads[node] = self._parameters(node)
        self._readers: dict[int, set[fx.Node]] = {}
        for node in self._reads.keys() - self._nodes:
            for key in self._reads[node]:
                self._readers.setdefault(key, set()).add(node)

    def __contains__(self, node: object) -> bool:
        """Whether ``node`` is constant."""
        return node in self._nodes

    def value(self, argument: Any) -> Any:
        """The value of a constant node or a literal, as the graph computes it; None for what is not constant."""
        if not isinstance(argument, fx.Node):
            return argument
        if argument not in self._nodes:
            return None
        if argument not in self._values:
            self._values[argument] = self._evaluate(argument)
        return self._values[argument]

    def shared(self, node: fx.Node) -> bool:
        """Whether something else in the graph reads a parameter or buffer of ``node``, too."""
        return self.readers(node) != {node}

    def readers(self, node: fx.Node) -> set[fx.Node]:
        """All nodes that read a parameter or buffer that ``node`` reads, itself among them."""
        return {node}.union(*(self._readers[key] for key in self._reads[node]))

    def params(self, node: fx.Node) -> int:
        """Elements of the parameters that ``node`` reads."""
        return sum(x.numel() for x in self._read(node) if isinstance(x, nn.Parameter))

    def learning(self, value: Tensor, node: fx.Node) -> Tensor:
        """``value``, which ``node`` reads, requiring gradients if a parameter does that ``node`` reads."""
        return value.detach().requires_grad_(any(x.requires_grad for x in self._read(node)))

    def steps(self, node: fx.Node) -> int:
        """How many nodes compute the constants that ``node`` alone reads."""
        seen: set[fx.Node] = set()
        stack = [n for n in node.all_input_nodes if n in self._nodes]
        while stack:
            one = stack.pop()
            if one not in seen and one.op != "get_attr":
                seen.add(one)
                stack += one.all_input_nodes
        return len(seen)

    def _read(self, node: fx.Node) -> list[Tensor]:
        """The parameters and buffers that ``node`` reads, each once."""
        return [self._by_identity[key] for key in self._reads[node] if key in self._by_identity]

    def _find(self) -> set[fx.Node]:
        constant: set[fx.Node] = set()
        for node in self._gm.graph.nodes:
            if node.op == "get_attr":
                if str(node.target) in self._tensors and node not in self._written:
                    constant.add(node)
            elif node.op in ("call_function", "call_method") and self._pure(node):
                inputs = node.all_input_nodes
                if constant.issuperset(inputs) and (inputs or called(node).creates):
                    constant.add(node)
        return constant

    def _pure(self, node: fx.Node) -> bool:
        return only_gives(self._gm, node) and node not in self._written

    def _parameters(self, node: fx.Node) -> frozenset[int]:
        """Identities of the parameters and buffers that ``node`` reads, itself or through constants."""
        module = module_of(self._gm, node)
        if module is not None:
            return frozenset(id(x) for x in (*module.parameters(), *module.buffers()))
        if node.op == "get_attr":
            return frozenset((id(self._tensors.get(str(node.target))),))
        return frozenset().union(*(self._reads[n] for n in node.all_input_nodes if n in self._nodes))

    def _evaluate(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return self._tensors[str(node.target)].detach()
        args = fx.node.map_arg(node.args, self.value)
        kwargs = fx.node.map_arg(node.kwargs, self.value)
        with torch.no_grad():
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return cast(Any, node.target)(*args, **kwargs)
