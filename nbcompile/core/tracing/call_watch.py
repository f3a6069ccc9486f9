"""What one eval run tells about how the modules of a model are called."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from torch.func import functional_call

from nbcompile.core.example import Inputs
from nbcompile.core.running import rehearsal, watched
from nbcompile.core.tracing.call import Call


def watch_calls(model: nn.Module, inputs: Inputs) -> dict[nn.Module, Call]:
    """How each module of ``model`` is called in one run, where it is called in one way.

    Left out are modules that are called in several ways, with something that is neither tensor nor constant, or
    passed by: whose children are called, also by another name, while they do not run themselves.

    Raises:
        PreconditionError: if the model does not run on ``inputs``.
    """
    watch = _Watch(model)
    looking = watched(model.named_modules(), enter=watch.enter, leave=watch.leave)
    with rehearsal(model, inputs) as (buffers, copies), looking:
        functional_call(model, buffers, copies)
    return {
        module: call if all(c and c.dimensions == call.dimensions for c in calls) else replace(call, dimensions=None)
        for module, calls in watch.calls.items()
        if (call := calls[0]) is not None and module not in watch.passed_by and all(c == call for c in calls)
    }


class _Watch:
    """Writes down how modules are called, and which run."""

    def __init__(self, model: nn.Module) -> None:
        self.calls: dict[nn.Module, list[Call | None]] = {}
        self.passed_by: set[nn.Module] = set()
        self._running: Counter[nn.Module] = Counter()
        self._around = _ancestors(model)

    def enter(self, _: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.calls.setdefault(module, []).append(Call.of(args, kwargs))
        self.passed_by |= {around for around in self._around[module] if not self._running[around]}
        self._running[module] += 1

    def leave(self, _: str, module: nn.Module, *__: Any) -> None:
        self._running[module] -= 1


def _ancestors(model: nn.Module) -> dict[nn.Module, set[nn.Module]]:
    """The modules that hold each module, under whatever name."""
    named = dict(model.named_modules(remove_duplicate=False))
    around: dict[nn.Module, set[nn.Module]] = {module: set() for module in named.values()}
    for name, module in named.items():
        if name:
            parent = named[name.rpartition(".")[0]]
            around[module] |= {parent} | around[parent]
    return around
