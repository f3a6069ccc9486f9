"""The values of a recorded run: which node each tensor is, and how what code passes around is said in a graph."""

import dataclasses
import operator
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from nbcompile.core.tracing.places import code_place
from nbcompile.core.tracing.sizes import TracedFloat, TracedInt, Writer, is_traced, plain

NUMBER = "number"
"""Key in the ``meta`` of a node that is a size, or computed of sizes: its value."""
SHAPE = "shape"
"""Key in the ``meta`` of a node that is a tensor: its shape."""
PLACE = "place"
"""Key in the ``meta`` of a node: file, line and function of the code that made it."""
INSIDE = "inside"
"""Key in the ``meta`` of a node: the module that made it."""

_LITERALS = (type(None), bool, str, bytes, complex, torch.dtype, torch.device, torch.memory_format, torch.layout)


class InexpressibleError(Exception):
    """A graph has no words for a value."""


class Values:
    """Which node gave a tensor, by the identity of tensors.

    Args:
        graph: what nodes are written into.
        names: of the network's own tensors, by identity; they outlive the run.
        state: identities of its parameters and buffers.
        writer: of the numbers that are made here.
        keep: whether all values are kept, to be looked at.
    """

    def __init__(
        self, graph: fx.Graph, names: Mapping[int, str], state: Collection[int], writer: Writer, keep: bool
    ) -> None:
        self.constants: dict[str, Tensor] = {}
        self.inside: Callable[[], str] = str
        self._graph, self._names, self._state, self._writer = graph, names, state, writer
        self._nodes: dict[int, tuple[weakref.ref[Tensor], fx.Node]] = {}
        self._kept: list[Tensor] | None = [] if keep else None
        self._lost: dict[int, Any] = {}
        self._erased: set[fx.Node] = set()
        self._devices: dict[int, tuple[torch.device, fx.Node]] = {}
        self._fed: set[fx.Node] = set()
        self._learnt: set[fx.Node] = set()

    def new(self, op: str, target: Any, args: Any = (), kwargs: Any = None, name: str | None = None) -> fx.Node:
        """A node."""
        node = self._graph.create_node(op, target, args, kwargs or {}, name)
        node.meta[PLACE], node.meta[INSIDE] = code_place(), self.inside()
        owner = target if op == "call_module" else node.meta[INSIDE]
        node.meta["nn_module_stack"] = {"": (owner, nn.Module)}  # as fx's own tracer says it
        for kind in (self._fed, self._learnt):
            if not kind.isdisjoint(node.all_input_nodes):
                kind.add(node)
        if op == "placeholder":
            self._fed.add(node)
        return node

    def put(self, value: Any, node: fx.Node) -> None:
        """From now on the tensors of ``value`` are what ``node`` gave."""
        if isinstance(value, Tensor):
            node.meta[SHAPE] = tuple(value.shape)
            key, nodes = id(value), self._nodes
            nodes[key] = weakref.ref(value, lambda _: nodes.pop(key, None)), node  # its identity is given away again
            self._lost.pop(key, None)
            if self._kept is not None:
                self._kept.append(value)
            return
        parts: Any = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in parts:
            if next(tensors_in(part), None) is not None:
                self.put(part, self.new("call_function", operator.getitem, (node, key)))

    def node(self, tensor: Tensor) -> fx.Node:
        """What gave ``tensor``; one that is from elsewhere becomes a constant.

        Raises:
            InexpressibleError: if it was made where the graph does not see.
        """
        known = self._nodes.get(id(tensor))
        if known is not None:
            return known[1]
        if id(tensor) in self._lost:
            raise InexpressibleError("uses a tensor that was made by code which the graph does not show")
        name = self._names.get(id(tensor))
        if name is None:
            name = f"_constant{len(self.constants)}"
            self.constants[name] = tensor
        node = self.new("get_attr", name)
        if id(tensor) in self._state:
            self._learnt.add(node)
        self.put(tensor, node)
        return node

    def number(self, value: Any, op: str, target: Any, args: Any) -> Any:
        """``value``, a number, with its node."""
        if type(value) not in (int, float):
            return value
        node = self.new(op, target, args)
        node.meta[NUMBER] = value
        self._fed.add(node)
        traced: Any = TracedInt(value) if type(value) is int else TracedFloat(value)
        traced.node, traced.writer = node, self._writer
        return traced

    def device(self, tensor: Tensor, device: torch.device) -> torch.device:
        """``device``, which is where ``tensor`` is: who passes it on means that."""
        self._devices[id(device)] = (device, self.node(tensor))
        return device

    def seen(self) -> dict[fx.Node, Tensor]:
        """The tensor that each node gave, as it is now; of values that were not kept those that are still there."""
        return {node: tensor for reference, node in self._nodes.values() if (tensor := reference()) is not None}

    def is_fed(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` depends on the inputs."""
        known = self._nodes.get(id(tensor))
        return id(tensor) in self._lost or (known is not None and known[1] in self._fed)

    def changes(self, tensor: Tensor) -> bool:
        """Whether the values of ``tensor`` depend on the inputs, or on what training changes."""
        known = self._nodes.get(id(tensor))
        return self.is_fed(tensor) or id(tensor) in self._state or (known is not None and known[1] in self._learnt)

    def lose(self, value: Any) -> None:
        """The graph does not show where the tensors of ``value`` come from."""
        for tensor in tensors_within(value):
            self._nodes.pop(id(tensor), None)
            self._lost[id(tensor)] = tensor

    def forget_after(self, last: fx.Node | None) -> None:
        """Erase what was written behind ``last``; what is read by its name can be read again."""
        erased = set()
        for node in reversed(self._graph.nodes):
            if node is last:
                break
            self._graph.erase_node(node)
            erased.add(node)
        if not erased:
            return
        self._erased |= erased
        for key, (reference, node) in list(self._nodes.items()):
            if node in erased:
                del self._nodes[key]
                if key not in self._names:
                    self._lost[key] = reference()

    def returned(self, value: Any) -> Any:
        """``value`` as the output of the graph: objects of other classes are made anew of what is in them."""
        if isinstance(value, tuple) and hasattr(value, "n_sequence_fields"):  # torch.return_types
            return self.new("call_function", type(value), (tuple(map(self.returned, value)),))
        if isinstance(value, torch.Size):
            return self.new("call_function", torch.Size, (self.expressed(value),))
        if isinstance(value, tuple) and not hasattr(value, "_fields"):
            return tuple(map(self.returned, value))
        if type(value) is list:
            return list(map(self.returned, value))
        if type(value) is dict and all(isinstance(key, (str, int)) for key in value):
            return {key: self.returned(part) for key, part in value.items()}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
            return self.new(
                "call_function", type(value), (), {key: self.returned(part) for key, part in fields.items()}
            )
        if isinstance(value, Mapping):
            return self.new("call_function", type(value), (self.returned(dict(value)),))
        return self.expressed(value)

    def expressed(self, value: Any) -> Any:
        """``value`` as an argument of a node.

        Raises:
            InexpressibleError: if a graph has no words for it.
        """
        if isinstance(value, Tensor):
            return self.node(value)
        if is_traced(value):
            if value.node in self._erased:
                raise InexpressibleError("uses a size that was taken by code which the graph does not show")
            return value.node
        if isinstance(value, torch.device) and id(value) in self._devices:
            return self.new("call_function", getattr, (self._devices[id(value)][1], "device"))
        if value is Ellipsis or isinstance(value, _LITERALS):
            return value
        if isinstance(value, (int, np.integer)):
            return int(value)
        if isinstance(value, (float, np.floating)):
            return float(value)
        if isinstance(value, slice):
            return slice(*map(self.expressed, (value.start, value.stop, value.step)))
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self.expressed, value))
        if isinstance(value, (list, tuple)):
            return (list if isinstance(value, list) else tuple)(map(self.expressed, value))
        if isinstance(value, (range, torch.Size)):
            return tuple(map(self.expressed, value))
        if type(value) is dict and all(isinstance(key, (str, int)) for key in value):
            return {key: self.expressed(part) for key, part in value.items()}
        raise InexpressibleError(f"passes on a {type(value).__name__}")


def bare(value: Any) -> Any:
    """``value`` with numbers that have no past."""
    if is_traced(value):
        return plain(value)
    if isinstance(value, torch.Size):
        return torch.Size(map(plain, value))
    if type(value) in (tuple, list):
        return type(value)(map(bare, value))
    if type(value) is dict:
        return {key: bare(part) for key, part in value.items()}
    return slice(bare(value.start), bare(value.stop), bare(value.step)) if isinstance(value, slice) else value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in ``value``, also in tuples, lists, sets and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, set, frozenset)):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)


def tensors_within(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """As :func:`tensors_in`, also in the attributes of objects."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        yield value
    elif id(value) not in seen:
        seen.add(id(value))
        parts: Any = ()
        if isinstance(value, (tuple, list, set, frozenset)):
            parts = value
        elif isinstance(value, Mapping):
            parts = value.values()
        elif (
            hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type, int, float)) and not callable(value)
        ):
            parts = vars(value).values()
        for part in parts:
            yield from tensors_within(part, seen)
