"""From a model to its fx graph.

A graph is captured to *locate* layers and to *prove* rewrites; it shares its leaf modules with the model, whose own
class is what users train. It is what the model did in one run (:mod:`nbcompile.core.tracing.recorder`), compared with
what it did in another, at another batch and other sizes where the model takes them
(:mod:`nbcompile.core.tracing.rounds`). What a graph cannot say stays one node, and is captured by itself
(:mod:`nbcompile.core.tracing.pieces`).
"""

import copy
from typing import Any

import torch
from torch import fx, nn

from nbcompile.core.errors import CaptureError, PreconditionError
from nbcompile.core.example import Inputs, inputs_for, random_inputs
from nbcompile.core.tracing.call import Call
from nbcompile.core.tracing.inputs import guesses, known_inputs
from nbcompile.core.tracing.modules import is_leaf
from nbcompile.core.tracing.record import ModelError
from nbcompile.core.tracing.recording import Reason, Recording
from nbcompile.core.tracing.rounds import Captured, capture_in_rounds

TAKEN = frozenset(dir(fx.GraphModule({}, fx.Graph()))) - frozenset(dir(nn.Module()))


def capture(model: nn.Module, inputs: Inputs | None = None, *, proof: bool = True) -> fx.GraphModule:
    """The eval-mode graph of ``model``; the model itself is left as it was.

    Args:
        model: any module; our blocks stay whole, and so does what a graph cannot say.
        inputs: what it is called with. None where the model remembers it, is one of timm or torchvision, or runs on
            what its first layers take; all parameters of ``forward`` that have defaults then have them.
        proof: run the graph on what the model was run on, and compare.

    Returns:
        A graph whose leaf modules are the model's own, under their qualified names; one placeholder a tensor.

    Raises:
        CaptureError: with the place in the code that a graph cannot say, or asking for an example input.
        PreconditionError: if the model does not run on ``inputs``.
    """
    found = capture_call(model, None if inputs is None else (inputs, {}), proof=proof)
    if found.graph is None:
        raise refused(model, found.refusal)
    if not found.call.is_plain:
        raise CaptureError(f"{type(model).__name__} takes more than tensors, which a graph as a whole does not")
    return found.graph


def capture_call(model: nn.Module, called: tuple[Inputs, dict[str, Any]] | None, *, proof: bool = True) -> Captured:
    """As :func:`capture`, with all that came of it.

    Args:
        model: left as it is.
        called: positional and keyword arguments; None where they are not known.
        proof: as of :func:`capture`.

    Raises:
        CaptureError: if nothing is known that the model runs on.
        PreconditionError: if it does not run on what it is called with.
    """
    require_free_names(model)
    if isinstance(model, fx.GraphModule) and not opaque(model):
        inputs = model.graph.find_nodes(op="placeholder")
        graph = fx.GraphModule(model, copy.deepcopy(model.graph), type(model).__name__)
        return Captured(Call.positional(len(inputs)), Recording(), graph, None)
    if called is None and (specs := known_inputs(model)) is not None:
        called = (inputs_for(model, random_inputs(specs), who="capture"), {})
    if called is None:
        return _at_a_guess(model, proof)
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(
            f"{type(model).__name__} is TorchScript, which no graph shows: give the module it was made from"
        )
    call = Call.of(*called)
    if call is None:
        raise CaptureError(f"{type(model).__name__} is called with what is neither tensor nor constant")
    try:
        return capture_in_rounds(model, call, call.tensors(*called) or [], guess=False, proof=proof)
    except ModelError as error:
        raise does_not_run(model, error.__cause__) from error.__cause__


def does_not_run(model: nn.Module, error: BaseException | None) -> PreconditionError:
    """That ``model`` raised ``error`` on the example input."""
    return PreconditionError(
        f"{type(model).__name__} does not run on the example input: {type(error).__name__}: {error}"
    )


def refused(model: nn.Module, refusal: Reason | None) -> CaptureError:
    """That ``model`` cannot be said, and why."""
    error = CaptureError(
        f"{type(model).__name__} cannot be traced into a graph: {refusal}; make that code independent of the values of "
        "tensors"
    )
    error.place = None if refusal is None else refusal.place
    return error


def opaque(gm: fx.GraphModule) -> dict[str, nn.Module]:
    """The modules that ``gm`` calls as one node because a graph cannot say what they do, by name."""
    called = dict.fromkeys(str(node.target) for node in gm.graph.find_nodes(op="call_module"))
    return {name: module for name in called if not is_leaf(module := gm.get_submodule(name))}


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


def _at_a_guess(model: nn.Module, proof: bool) -> Captured:
    call = Call.required(model)
    for tensors in guesses(model, call) if call is not None else ():
        try:
            return capture_in_rounds(model, call, tensors, guess=True, proof=proof)  # type: ignore[arg-type]
        except ModelError:
            continue
    raise CaptureError(
        f"what {type(model).__name__} takes cannot be guessed from its layers: give an example input "
        "(example_input=..., or --input)"
    )
