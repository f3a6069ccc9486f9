"""Two runs of one network, compared call by call: what differs with the inputs must follow from them in the graph."""

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from nbcompile.core.tracing.recording import Choice, Recording
from nbcompile.core.tracing.values import INSIDE, NUMBER, PLACE, SHAPE


class DisagreementError(Exception):
    """The graph of one run is not that of the other.

    Attributes:
        inside: the module whose code differs.
        place: of that code.
        why: what differs.
    """

    def __init__(self, node: fx.Node, why: str) -> None:
        super().__init__(why)
        self.inside: str = node.meta.get(INSIDE, "")
        self.place: str = node.meta.get(PLACE, "its output")
        self.why = why


class Comparison:
    """Compares a recording that has sizes as nodes with one, at other inputs, that has them as plain numbers.

    A whole number that is no node, and grows as the batch does, is made a node; only where a third run agrees is that
    more than a guess.

    Args:
        one: its graph is changed.
        other: left as it is.

    Attributes:
        guessed: whether there are such numbers.

    Raises:
        DisagreementError: at the first call that differs.
    """

    def __init__(self, one: Recording, other: Recording, *, guess: bool = True) -> None:
        self.guessed = False
        self._one, self._guess = one, guess
        nodes = [node for node in one.graph.nodes if NUMBER not in node.meta]
        others = list(other.graph.nodes)
        self._twin = dict(zip(nodes, others, strict=False))
        self._values: dict[fx.Node, Any] = {}
        inputs = [n.meta[SHAPE] for n in nodes if n.op == "placeholder" and n.meta[SHAPE]]
        self._batch = (inputs[0][0], self._twin[nodes[0]].meta[SHAPE][0]) if inputs else (1, 1)
        merged = [self._compare(a, b, other) for a, b in zip(nodes, others, strict=False)]
        for node, (args, kwargs) in zip(nodes, merged, strict=True):
            node.args, node.kwargs = self._put(node, args), self._put(node, kwargs)

    def value(self, node: fx.Node) -> Any:
        """What a number of the first graph is in the other run."""
        if node not in self._values:
            first, *rest = node.args
            if node.op == "call_method":
                twin = self._twin.get(first)
                if twin is None or SHAPE not in twin.meta:
                    raise DisagreementError(node, "asks for the size of what it has for one input only")
                shape = twin.meta[SHAPE]
                self._values[node] = math.prod(shape) if node.target != "size" else shape[rest[0]]
            else:
                numbers = [self.value(x) if isinstance(x, fx.Node) else x for x in node.args]
                self._values[node] = node.target(*numbers)  # type: ignore[operator]
        return self._values[node]

    def open(self, choice: Choice, varied: bool) -> bool:
        """Whether a choice was made by numbers that can be others, as the sizes can that they are made of."""
        nodes = [node for node in choice.nodes if node in self._one.graph.nodes]
        return any(not _is_fixed(size, self, varied) for node in nodes for size in _sizes(node))

    def differs(self, choice: Choice) -> bool:
        """Whether a choice was made by other numbers in the other run."""
        nodes = [node for node in choice.nodes if node in self._one.graph.nodes]
        return any(self.value(node) != node.meta[NUMBER] for node in nodes)

    def _compare(self, a: fx.Node, b: fx.Node, other: Recording) -> tuple[Any, Any]:
        if (a.op == "output") != (b.op == "output"):
            raise DisagreementError(b if a.op == "output" else a, "makes another number of calls for another input")
        if a.op != b.op or a.target != b.target:
            raise DisagreementError(a, f"calls {_said(a)} for one input and {_said(b)} for another")
        constant = self._one.constants.get(str(a.target)) if a.op == "get_attr" else None
        if constant is not None and not _equal(constant, other.constants[str(a.target)]):
            raise DisagreementError(a, "uses a tensor that torch did not make, and that depends on the input")
        return self._merged(a, a.args, b.args), self._merged(a, a.kwargs, b.kwargs)

    def _merged(self, at: fx.Node, a: Any, b: Any) -> Any:
        if isinstance(a, fx.Node):
            if (self.value(a) != b) if NUMBER in a.meta else (self._twin[a] is not b):
                raise DisagreementError(at, f"gives {_said(at)} another value for another input")
            return a
        if isinstance(a, (list, tuple)) and type(a) is type(b) and len(a) == len(b):
            parts = [self._merged(at, x, y) for x, y in zip(a, b, strict=True)]
            return type(a)(*parts) if hasattr(a, "_fields") else type(a)(parts)
        if isinstance(a, dict) and isinstance(b, dict) and list(a) == list(b):
            return {key: self._merged(at, x, b[key]) for key, x in a.items()}
        if isinstance(a, slice) and isinstance(b, slice):
            return slice(*(self._merged(at, getattr(a, k), getattr(b, k)) for k in ("start", "stop", "step")))
        if type(a) is type(b) and (a == b or (a != a and b != b)):
            return a
        return self._grown(at, a, b)

    def _grown(self, at: fx.Node, a: Any, b: Any) -> "_Grown":
        """A whole number that is to ``b`` as the batches are to each other."""
        batch, others = self._batch
        whole = self._guess and type(a) is type(b) is int and batch != others
        if not whole or a % batch or a * others != b * batch:
            raise DisagreementError(at, f"gives {_said(at)} the number {a} for one input and {b} for another")
        self.guessed = True
        return _Grown(a // batch, a)

    def _put(self, at: fx.Node, value: Any) -> Any:
        """``value`` with nodes for numbers that grow."""
        if isinstance(value, (list, tuple)):
            parts = [self._put(at, part) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        if isinstance(value, dict):
            return {key: self._put(at, part) for key, part in value.items()}
        if isinstance(value, slice):
            return slice(*(self._put(at, part) for part in (value.start, value.stop, value.step)))
        if not isinstance(value, _Grown):
            return value
        graph, inputs = self._one.graph, self._one.graph.find_nodes(op="placeholder")
        with graph.inserting_before(at):
            size = graph.call_method("size", (inputs[0], 0))
            made = graph.call_function(operator.mul, (size, value.factor))
        size.meta[NUMBER], made.meta[NUMBER] = self._batch[0], value.value
        self._values[size], self._values[made] = self._batch[1], value.factor * self._batch[1]
        return made


@dataclass(frozen=True)
class _Grown:
    """``factor`` times the batch."""

    factor: int
    value: int


def settle(one: Recording, agreed: Comparison | None, varied: bool) -> None:
    """Numbers that are the same for every input become plain, and what nobody reads goes.

    Args:
        one: its graph is changed.
        agreed: with another run; None where there was none.
        varied: whether all sizes were others there, but the channels of maps.
    """
    for node in list(one.graph.nodes):
        if NUMBER in node.meta and agreed is not None and _is_fixed(node, agreed, varied):
            plain = {node: node.meta[NUMBER]}
            for user in list(node.users):
                user.args = fx.node.map_arg(user.args, lambda n, plain=plain: plain.get(n, n))  # type: ignore[misc]
                user.kwargs = fx.node.map_arg(user.kwargs, lambda n, plain=plain: plain.get(n, n))  # type: ignore[misc]
    for node in reversed(list(one.graph.nodes)):
        idle = NUMBER in node.meta or node.target is operator.getitem or node.target is getattr or node.op == "get_attr"
        if idle and not node.users:
            one.graph.erase_node(node)


def _is_fixed(node: fx.Node, agreed: Comparison, varied: bool) -> bool:
    """Whether a number is the same for every input: the size of a dimension that no input reaches, or made of such."""
    if node.op != "call_method":
        return not node.all_input_nodes
    if agreed.value(node) != node.meta[NUMBER] or node.target != "size":
        return False
    source: Any = node.args[0]
    dims = len(source.meta[SHAPE])
    return (varied and not _is_cut(source)) or (dims >= 4 and node.args[1] in (1, 1 - dims))


def _is_cut(node: fx.Node) -> bool:
    """Whether a map was cut to a fixed length on its way: a shorter one has another size."""
    seen, stack = {node}, [node]
    while stack:
        one = stack.pop()
        index = one.args[1] if one.target is operator.getitem else ()
        if any(
            isinstance(part, slice) and part.stop is not None
            for part in (index if isinstance(index, tuple) else (index,))
        ):
            return True
        stack += [more for more in one.all_input_nodes if more not in seen]
        seen.update(one.all_input_nodes)
    return False


def _sizes(node: fx.Node) -> Iterator[fx.Node]:
    """The sizes that a number is made of."""
    if node.op == "call_method":
        yield node
    else:
        for one in node.all_input_nodes:
            yield from _sizes(one)


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    same = a.shape == b.shape and a.dtype == b.dtype and a.layout == b.layout
    return same and bool(torch.equal(a.nan_to_num(), b.nan_to_num()) if a.is_floating_point() else torch.equal(a, b))


def _said(node: fx.Node) -> str:
    return str(node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target))
