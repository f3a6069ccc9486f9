"""A file gives the same output for the same inputs, run after run: so must the network that it is made of."""

import traceback
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nbcompile.core.copies import working_copy
from nbcompile.core.errors import PreconditionError
from nbcompile.core.example import Inputs
from nbcompile.core.numerics import output_tolerance, relative_error
from nbcompile.core.random_state import forked_rng
from nbcompile.core.running import output_of
from nbcompile.core.tracing.modules import changed, state
from nbcompile.exporters.program import users_place

_SEEDS = (0, 1)
_DRAWS = "draws random numbers in eval mode"


def require_repeatable(model: nn.Module, inputs: Inputs) -> None:
    """As :func:`why_unrepeatable`, for a network of which a file is to be made.

    Raises:
        PreconditionError: if it gives another output the second time.
    """
    if (why := why_unrepeatable(model, inputs)) is None:
        return
    remedy = (
        "a file draws none: remove that, or do it under `if self.training`"
        if why.startswith(_DRAWS)
        else "a file keeps nothing: take that value as an input, and return it as an output"
    )
    raise PreconditionError(f"{type(model).__name__} {why}, and {remedy}")


def why_unrepeatable(model: nn.Module, inputs: Inputs) -> str | None:
    """Run ``model`` twice on the same inputs, with other random numbers the second time.

    Args:
        model: in eval mode; left as it is.
        inputs: what it is called with.

    Returns:
        None if it gives the same output twice; else what it does, with what it keeps from the first call, or the place
        where it draws random numbers.
    """
    tried = working_copy(model, training=False)
    before = state(tried)
    drawn = _Drawn()
    try:
        with forked_rng(), drawn:
            outputs = []
            for seed in _SEEDS:
                torch.manual_seed(seed)
                outputs.append(output_of(_ByNodes(tried) if _is_graph(tried) else tried, inputs))
                kept = [one for one in changed(before, state(tried)) if not _is_graph(tried.get_submodule(one[0]))]
        if relative_error(outputs[1], outputs[0]) <= output_tolerance(outputs[0]):
            return None
    except Exception:  # it does not run, or gives no tensors: the exporter says how
        return None
    if drawn.places:
        return _DRAWS + (f" at {drawn.places[0]}" if drawn.places[0] else "")
    what = f"'{'.'.join(kept[0]).lstrip('.')}'" if kept else "something outside its modules"
    return f"gives another output when it is called again, because it keeps {what} from call to call"


def _is_graph(module: nn.Module) -> bool:
    return isinstance(module, fx.GraphModule)


class _ByNodes(nn.Module):
    """A graph that runs node by node: these know where they come from."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, *inputs: Tensor) -> Any:
        return fx.Interpreter(self.graph).run(*inputs)


class _Drawn(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the places of operators that draw random numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.places.append(users_place(traceback.walk_stack(None)))
        return func(*args, **(kwargs or {}))
