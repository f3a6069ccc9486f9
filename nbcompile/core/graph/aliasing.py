"""Values that are changed after they were computed, and read again: merging must not move their readers."""

import inspect
import operator
from functools import cache
from typing import Any

from torch import fx

from nbcompile.core.graph.nodes import asks_metadata, module_of
from nbcompile.core.graph.operators import called, is_foreign, of_module

_WRITING = (
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod, operator.ipow),
    *(operator.iand, operator.ior, operator.ixor, operator.imatmul, operator.setitem, operator.delitem),
)


def writes_in_place(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether ``node`` changes a value: ``relu_``, ``+=``, ``x[...] = y``, ``ReLU(inplace=True)``, ``out=``."""
    module = module_of(gm, node)
    if module is not None:
        return bool(getattr(module, "inplace", False))
    if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
        return False
    if node.target in _WRITING or node.kwargs.get("inplace") is True or node.kwargs.get("out") is not None:
        return True
    position = _inplace_position(node.target) if node.op == "call_function" else None
    if position is not None and len(node.args) > position:
        return bool(node.args[position])
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.endswith("_") and not name.endswith("__")


@cache
def _inplace_position(function: Any) -> int | None:
    """At which position ``function`` takes ``inplace``: those of torch.nn.functional say so in their signature."""
    if not str(getattr(function, "__module__", None)).startswith("torch.nn.functional"):
        return None
    parameters = list(inspect.signature(function).parameters)
    return parameters.index("inplace") if "inplace" in parameters else None


class Aliasing:
    """Who changes what in place. A value that shares memory with a changed one (a view of it) is changed, too.

    Attributes:
        changed: values that are changed before another of their readers runs, and the node that changes them.
        writers: nodes that change such a value, and the value: they do more than they give.
        written: all values that are ever changed, read again or not.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self.changed: dict[fx.Node, fx.Node] = {}
        self.writers: dict[fx.Node, fx.Node] = {}
        order = {node: i for i, node in enumerate(gm.graph.nodes)}
        memory: dict[fx.Node, object] = {}
        sharing: dict[object, list[fx.Node]] = {}
        self._into: dict[object, list[fx.Node]] = {}
        for node in gm.graph.nodes:
            writes = writes_in_place(gm, node)
            source = _memory_of(node)
            aliases = source is not None and (writes or may_alias(gm, node))
            home = memory[source] if aliases and source is not None else _home(node)
            memory[node] = home
            if writes:
                self._into.setdefault(home, []).append(node)
                for other in sharing.get(home, ()):
                    if any(order[user] > order[node] for user in other.users):
                        self.changed.setdefault(other, node)
                        self.writers.setdefault(node, other)
            sharing.setdefault(home, []).append(node)
        self.written = {node for home in self._into for node in sharing[home]}
        self._memory, self._sharing = memory, sharing

    def writing(self, value: fx.Node) -> list[fx.Node]:
        """The nodes that change the memory that ``value`` is in."""
        return self._into.get(self._memory.get(value), [])

    def home(self, value: fx.Node) -> object:
        """What the memory that ``value`` is in is known by."""
        return self._memory[value]

    def move(self, value: fx.Node, to: fx.Node) -> None:
        """``value`` goes, and what is in its memory is in that of ``to``."""
        home, into = self._memory[value], self._memory[to]
        if home is not into:
            for one in self._sharing.pop(home):
                self._memory[one] = into
                self._sharing[into].append(one)

    def shares(self, value: fx.Node) -> bool:
        """Whether ``value`` may be in the memory of a value before it: a view of it, or it changed in place."""
        return self._sharing[self._memory[value]][0] is not value

    def forget(self, value: fx.Node) -> None:
        """``value`` and what is written into it are understood, and go or stay together."""
        self.changed.pop(value, None)
        for writer in [writer for writer, changed in self.writers.items() if changed is value]:
            del self.writers[writer]


def _home(node: fx.Node) -> object:
    """What memory a value that shares none is known by; all reads of one parameter or buffer share."""
    return node.target if node.op == "get_attr" else node


def _memory_of(node: fx.Node) -> fx.Node | None:
    """The value whose memory the result may be in."""
    out = node.kwargs.get("out")
    return out if isinstance(out, fx.Node) else next(iter(node.all_input_nodes), None)


def may_alias(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the result may share memory with the first input; code that is not torch's may do anything."""
    module = module_of(gm, node)
    if asks_metadata(node):
        return False
    if module is not None:
        return of_module(module).view or not type(module).__module__.startswith("torch.nn")
    return called(node).view or is_foreign(node)
