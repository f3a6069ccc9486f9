"""Graphs of networks that need not run, for tests of what reads graphs: made by symbolic tracing."""

import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from nbcompile.core.layers import why_changed
from nbcompile.core.running import eval_mode
from nbcompile.core.tracing.modules import is_leaf


class _Proxy(fx.Proxy):
    """Writes ``x += y`` and ``x[i] = y`` down as what they are."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _in_place(function: Callable[..., Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in ("iadd", "isub", "imul", "itruediv"):
    setattr(_Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m) or why_changed(m) is not None

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What cannot be traced is one node, too."""
        try:
            return super().call_module(m, forward, args, kwargs)
        except fx.proxy.TraceError:
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


def capture(model: nn.Module) -> fx.GraphModule:
    """The graph of ``model`` for all inputs; its leaf modules are the model's own."""
    with eval_mode(model):
        return fx.GraphModule(model, _Tracer().trace(model), type(model).__name__)
