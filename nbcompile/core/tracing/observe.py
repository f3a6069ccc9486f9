"""One run of a model as a graph: for models of which a graph cannot say all.

What is seen is the path that one run took. The graph says who reads whose values, which is what locating a layer and
finding its readers need; it is not run, and it cannot be saved as the model.
"""

from torch import fx, nn
from torch.utils._pytree import tree_flatten

from nbcompile.core.errors import PreconditionError
from nbcompile.core.example import Inputs
from nbcompile.core.tracing.call import SLOT, Call
from nbcompile.core.tracing.capture import does_not_run, require_free_names
from nbcompile.core.tracing.record import ModelError, record
from nbcompile.core.tracing.rig import Rig
from nbcompile.core.tracing.rounds import graph_module


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
    tensors, structure = tree_flatten((inputs, {}))
    try:
        seen = record(Rig(model), Call(structure, (SLOT,) * len(tensors)), tensors, sizes=False, strict=False)
    except ModelError as error:
        raise does_not_run(model, error.__cause__) from error.__cause__
    with seen.graph.inserting_before(next(iter(n for n in seen.graph.nodes if n.op != "placeholder"))):
        seen.graph.call_function(one_run_only)
    return graph_module(model, seen)


def one_run_only() -> None:
    """Stands in every observed graph, so that it can neither be run nor saved as if it were the model."""
    raise PreconditionError("a graph observed in one run is not the model and cannot be run; do without verify_each")


def is_observed(gm: fx.GraphModule) -> bool:
    """Whether ``gm`` shows one run's path and not the model."""
    return bool(gm.graph.find_nodes(op="call_function", target=one_run_only))
