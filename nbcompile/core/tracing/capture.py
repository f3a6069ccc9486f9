"""From a model to its fx graph.

A graph is captured to *locate* layers and to *prove* rewrites; it shares its leaf modules with the model, whose own
class is what users train. What cannot be traced inside it stays one node (:mod:`nbcompile.core.tracing.tracer`) and is
captured by itself (:mod:`nbcompile.core.tracing.pieces`).
"""

import copy
import traceback

from torch import fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule

from nbcompile.core.errors import CaptureError
from nbcompile.core.files import with_slashes
from nbcompile.core.running import eval_mode
from nbcompile.core.tracing.call import Call
from nbcompile.core.tracing.tracer import Tracer, is_leaf

__all__ = ["TAKEN", "capture", "is_leaf", "opaque", "require_free_names"]

TAKEN = frozenset(dir(fx.GraphModule({}, fx.Graph()))) - frozenset(dir(nn.Module()))


def capture(model: nn.Module, inputs: int | Call | None = None) -> fx.GraphModule:
    """The eval-mode graph of ``model``; the model itself is left as it was.

    Args:
        model: any module; our blocks stay whole, and so does what cannot be traced inside it.
        inputs: how many tensors it is called with, or the :class:`Call`; further parameters of ``forward`` take their
            defaults. None stands for a tensor for each parameter that has no default.

    Returns:
        A graph whose leaf modules are the model's own, under their qualified names; one placeholder a tensor.

    Raises:
        CaptureError: with the place in the code of ``model`` itself that cannot be traced.
    """
    require_free_names(model)
    if isinstance(model, fx.GraphModule) and not opaque(model):
        return fx.GraphModule(model, copy.deepcopy(model.graph), type(model).__name__)
    call = Call.positional(inputs) if isinstance(inputs, int) else inputs or Call.required(model)
    try:
        with eval_mode(model):
            # it writes its code when it is first run: passes only look at the graph
            return _LazyGraphModule(model, Tracer(call).trace(model), type(model).__name__)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be traced into a graph: {_where(error)}: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}. Make that code "
            "independent of tensor values, or name the layers to expand with where=[...]"
        ) from error


def opaque(gm: fx.GraphModule) -> dict[str, nn.Module]:
    """The modules that ``gm`` calls as one node because they could not be traced, by name."""
    called = dict.fromkeys(str(node.target) for node in gm.graph.find_nodes(op="call_module"))
    return {name: module for name in called if not is_leaf(module := gm.get_submodule(name), name)}


def require_free_names(model: nn.Module) -> None:
    """Check that no child is called like an attribute that every GraphModule has: it could not be put in one.

    Raises:
        CaptureError: naming the child.
    """
    if taken := sorted(TAKEN.intersection(dict(model.named_children()))):
        raise CaptureError(
            f"{type(model).__name__} has a child called '{taken[0]}', a name that torch.fx.GraphModule needs for "
            "itself: rename it"
        )


def _where(error: Exception) -> str:
    """File and line of the innermost frame that is the model's, not torch's."""
    frames = traceback.extract_tb(error.__traceback__)
    others = ("/torch/fx/", "/torch/nn/modules/module", "/nbcompile/core/")
    own = [f for f in frames if not any(other in with_slashes(f.filename) for other in others)]
    frame = (own or list(frames))[-1]
    return f"{frame.filename}:{frame.lineno} in {frame.name}"
