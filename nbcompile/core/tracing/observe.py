"""One run of a model as a graph: for models that cannot be traced.

What is seen is the path that one run took. The graph says who reads whose values, which is what locating a layer and
finding its readers need; it is not run, and it cannot be saved as the model.
"""

import operator
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from nbcompile.core.errors import PreconditionError
from nbcompile.core.example import Inputs
from nbcompile.core.running import rehearsal, watched
from nbcompile.core.tracing.capture import is_leaf, require_free_names


def observe(model: nn.Module, inputs: Inputs) -> fx.GraphModule:
    """The graph of one eval-mode run of ``model``, without gradients; the model is left as it was.

    It shows the path that these inputs took: a branch not taken is not in it, and a loop is unrolled. Leaf modules are
    those of :func:`nbcompile.core.tracing.capture.capture`; what they do inside is not recorded. Code that torch's
    functions do not pass through (TorchScript) is not seen.

    Args:
        model: any module that runs on ``inputs``.
        inputs: positional inputs of ``forward``.

    Returns:
        A graph of ``call_module`` nodes for leaf modules, ``get_attr`` for parameters and buffers, and function and
        method nodes for the rest. Running it raises PreconditionError.

    Raises:
        PreconditionError: if the model does not run on ``inputs``.
        CaptureError: if a child has a name that graphs need for themselves.
    """
    require_free_names(model)
    with rehearsal(model, inputs) as (buffers, copies):
        known = {id(tensor): key for key, tensor in (*model.named_parameters(), *buffers.items())}
        recorder = _Recorder(known)
        for i, x in enumerate(_tensors(copies)):
            recorder.link(x, recorder.graph.placeholder(f"input_{i}"))
        recorder.graph.call_function(one_run_only)
        leaves = [(name, m) for name, m in model.named_modules() if m is not model and is_leaf(m, name)]
        with watched(leaves, enter=recorder.enter, leave=recorder.leave), recorder:
            output = functional_call(model, buffers, copies)
    recorder.graph.output(tuple(dict.fromkeys(recorder.node(x) for x in _tensors(output))))
    return fx.GraphModule(model, recorder.graph, type(model).__name__)


def one_run_only() -> None:
    """Stands in every observed graph, so that it can neither be run nor saved as if it were the model."""
    raise PreconditionError("a graph observed in one run is not the model and cannot be run; do without verify_each")


def is_observed(gm: fx.GraphModule) -> bool:
    """Whether ``gm`` shows one run's path and not the model."""
    return bool(gm.graph.find_nodes(op="call_function", target=one_run_only))


class _Recorder(TorchFunctionMode):
    """Writes every torch function outside leaf modules, and every leaf module, into a graph.

    Values are followed by the identity of tensors; all are kept, because the id of a dead one is used again.
    """

    def __init__(self, known: dict[int, str]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self._known = known
        self._nodes: dict[int, tuple[Tensor, fx.Node]] = {}
        self._depth = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._depth:
            return func(*args, **kwargs)
        nodes, named = self._arguments(args), self._arguments(kwargs)
        out = func(*args, **kwargs)
        self.link(out, _written(self.graph, func, nodes, named))
        return out

    def enter(self, *_: Any) -> None:
        """A leaf module begins: what it does inside is its own."""
        self._depth += 1

    def leave(self, name: str, _: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        """A leaf module ends: it is one node."""
        self._depth -= 1
        if not self._depth:
            self.link(out, self.graph.call_module(name, self._arguments(args), self._arguments(kwargs)))

    def link(self, value: Any, node: fx.Node) -> None:
        """From now on the tensors of ``value`` are what ``node`` gave."""
        for tensor in _tensors(value):
            self._nodes[id(tensor)] = (tensor, node)

    def node(self, tensor: Tensor) -> fx.Node | None:
        """What gave ``tensor``; None for a constant that is neither parameter nor buffer."""
        if id(tensor) in self._known and id(tensor) not in self._nodes:
            self.link(tensor, self.graph.get_attr(self._known[id(tensor)]))
        return self._nodes.get(id(tensor), (tensor, None))[1]

    def _arguments(self, value: Any) -> Any:
        return fx.node.map_aggregate(value, lambda x: self.node(x) if isinstance(x, Tensor) else x)


def _written(graph: fx.Graph, func: Any, args: Any, kwargs: Any) -> fx.Node:
    """``func`` as tracing would have written it: a method, an operator, an attribute or a function."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return graph.call_function(getattr, (args[0], func.__self__.__name__))
    if getattr(Tensor, name, None) is not func:
        return graph.call_function(func, args, kwargs)
    if name.startswith("__") and hasattr(operator, name):
        return graph.call_function(getattr(operator, name), args, kwargs)
    return graph.call_method(name, args, kwargs)


def _tensors(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """The tensors in ``value``: nested tuples, lists, mappings, and objects with attributes."""
    if isinstance(value, Tensor):
        yield value
        return
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    children: Any = ()
    if isinstance(value, Mapping):
        children = value.values()
    elif isinstance(value, (tuple, list, set, frozenset)):
        children = value
    elif hasattr(value, "__dict__") and not isinstance(value, nn.Module) and not callable(value):
        children = vars(value).values()
    for child in children:
        yield from _tensors(child, seen)
