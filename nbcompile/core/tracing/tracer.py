"""The tracer: which modules stay one node of a graph, and what becomes of those that cannot be traced.

Leaves are torch's own modules, our blocks, and modules that carry hooks. A module whose forward fails while it is
traced becomes a leaf, too: innermost first, in one trace, so that no more of a network is opaque than must be.
"""

import dis
import math
import operator
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

from torch import Tensor, fx, nn

from nbcompile.core.blocks import Expanded
from nbcompile.core.files import with_slashes
from nbcompile.core.layers import why_changed, why_no_layer
from nbcompile.core.tracing.call import Call

_PLAIN = fx.Tracer()


class _Proxy(fx.Proxy):
    """Writes ``x += y`` and ``x[i] = y`` down as what they are: others may read the ``x`` that they change."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _in_place(function: Callable[..., Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in ("iadd", "isub", "imul", "itruediv"):
    setattr(_Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class Tracer(fx.Tracer):
    """Traces a module as it is called.

    Args:
        call: how the root is called; every tensor in it becomes a placeholder. None keeps every parameter.
    """

    proxy_buffer_attributes = True  # what is computed from a buffer must follow when training changes the buffer

    def __init__(self, call: Call | None = None) -> None:
        modules, functions = _library_wraps()
        super().__init__(autowrap_modules=modules, autowrap_functions=functions)
        self._call = call
        self._spared: list[fx.Node] = []
        self._keys: dict[int, str] = {}

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        """The graph of ``root``, without what failing modules left behind."""
        if isinstance(root, nn.Module):
            self._keys = {id(x): key for key, x in [*root.named_parameters(), *root.named_buffers()][::-1]}
        graph = super().trace(root, concrete_args)
        for node in self._spared:
            if not node.users:
                graph.erase_node(node)
        return graph

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """As fx's own, which walks over the whole model for every attribute that is read."""
        key = self._keys.get(id(attr_val)) if isinstance(attr_val, Tensor) else None
        if key is None:
            return super().getattr(attr, attr_val, parameter_proxy_cache)
        if key not in parameter_proxy_cache:
            parameter_proxy_cache[key] = self.create_proxy("get_attr", key, (), {})
        return parameter_proxy_cache[key]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """What stands for the value of ``node``."""
        return _Proxy(node, self)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """One placeholder a tensor; the rest of the call is as it is."""
        call = self._call
        if call is None:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        root = self.root

        def forward(*tensors: Any) -> Any:
            args, kwargs = call.filled(tensors)
            return root.forward(*args, **kwargs)

        return forward, [self.create_proxy("placeholder", name, (), {}) for name in call.names(root)]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """What :func:`is_leaf` says, and what carries hooks: run through once while tracing, they would be lost."""
        return is_leaf(m, module_qualified_name) or why_changed(m) is not None

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """One node for a leaf, or for what fails; else what is inside."""
        last = next(iter(reversed(self.graph.nodes)), None)
        stack = self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self._rewind(last)
            self.module_stack = stack
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """An ``assert`` on a traced value is taken as true: it guards the path that is captured and chooses none.

        fx's own ``trace_asserts`` does not recognise the bytecode of Python 3.11 and later.
        """
        frame = sys._getframe(1)
        while "/torch/fx/" in with_slashes(frame.f_code.co_filename) and frame.f_back is not None:
            frame = frame.f_back
        if _is_assert(frame.f_code, frame.f_lasti):
            return True
        return super().to_bool(obj)

    def _rewind(self, last: fx.Node | None) -> None:
        """Erase what was written behind ``last``, but for parameters and buffers: the tracer hands those out again."""
        for node in reversed(self.graph.nodes):
            if node is last:
                return
            if node.op == "get_attr":
                self._spared.append(node)
            else:
                self.graph.erase_node(node)


def is_leaf(module: nn.Module, name: str) -> bool:
    """Whether ``module``, called ``name`` in its model, stays one node of every graph: torch's, our blocks, layers."""
    if isinstance(module, Expanded) or why_no_layer(module) is None:
        return True
    holds_only = type(module).forward is nn.Module.forward  # ModuleList, ModuleDict
    return not holds_only and _PLAIN.is_leaf_module(module, name)


def _is_assert(code: CodeType, at: int) -> bool:
    """Whether the truth value asked for at bytecode offset ``at`` decides only if an AssertionError is raised."""
    following = [i for i in dis.get_instructions(code) if i.offset >= at and i.opname != "CACHE"][:4]
    raises = [n for n, i in enumerate(following) if "ASSERTION_ERROR" in i.opname or i.argval is AssertionError]
    return bool(raises) and any(i.opname.endswith("IF_TRUE") for i in following[: raises[0]])


def _library_wraps() -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Functions that torchvision and timm declare untraceable; a library that is not loaded has no model here."""
    modules: list[Any] = [math]
    functions: list[Any] = []
    if ops := sys.modules.get("torchvision.ops"):
        modules.append(ops)
    if timm := sys.modules.get("timm.layers._fx"):
        functions += timm.get_notrace_functions()
    return tuple(modules), tuple(functions)
