"""From a model to its fx graph.

A graph is captured to *locate* layers and to *prove* rewrites; it shares its leaf modules with the model, whose own
class is what users train. It is what the model did in one run (:mod:`nbcompile.core.tracing.record`), compared with what
it did in another, at another batch and other sizes where the model takes them (:mod:`nbcompile.core.tracing.agree`). What
a graph cannot say stays one node, and is captured by itself (:mod:`nbcompile.core.tracing.pieces`).
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule

from nbcompile.core.errors import CaptureError, PreconditionError
from nbcompile.core.example import Inputs, inputs_for, random_inputs
from nbcompile.core.graph.guards import require_choice, require_sizes
from nbcompile.core.graph.ranks import DIMENSIONS
from nbcompile.core.tracing.agree import Agreement, DisagreementError, settle
from nbcompile.core.tracing.call import Call
from nbcompile.core.tracing.guess import guesses, known
from nbcompile.core.tracing.leaves import is_leaf
from nbcompile.core.tracing.record import Choice, Recording, Refusal, record
from nbcompile.core.tracing.replay import UnprovenError, prove
from nbcompile.core.tracing.values import SHAPE

TAKEN = frozenset(dir(fx.GraphModule({}, fx.Graph()))) - frozenset(dir(nn.Module()))
_ROUNDS = 12
"""How often a network is run again because another part of it has turned out to be opaque."""


@dataclass(frozen=True, eq=False)
class Captured:
    """What came of a capture.

    Attributes:
        call: how the model was called.
        recording: of its last run.
        graph: None where there is a refusal.
        refusal: why the model as a whole cannot be said.
    """

    call: Call
    recording: Recording
    graph: fx.GraphModule | None
    refusal: Refusal | None


def capture(model: nn.Module, inputs: Inputs | None = None, *, proof: bool = True) -> fx.GraphModule:
    """The eval-mode graph of ``model``; the model itself is left as it was.

    Args:
        model: any module; our blocks stay whole, and so does what a graph cannot say.
        inputs: what it is called with. None where the model remembers it, is one of timm or torchvision, or runs on what
            its first layers take; all parameters of ``forward`` that have defaults then have them.
        proof: run the graph on what the model was run on, and compare.

    Returns:
        A graph whose leaf modules are the model's own, under their qualified names; one placeholder a tensor.

    Raises:
        CaptureError: with the place in the code that a graph cannot say, or asking for an example input.
        PreconditionError: if the model does not run on ``inputs``.
    """
    require_free_names(model)
    if isinstance(model, fx.GraphModule) and not opaque(model):
        return fx.GraphModule(model, copy.deepcopy(model.graph), type(model).__name__)
    found = captured(model, None if inputs is None else (inputs, {}), proof=proof)
    if found.graph is None:
        raise refused(model, found.refusal)
    if not found.call.is_plain:
        raise CaptureError(f"{type(model).__name__} takes more than tensors, which a graph as a whole does not")
    return found.graph


def captured(model: nn.Module, called: tuple[Inputs, dict[str, Any]] | None, *, proof: bool = True) -> Captured:
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
    if called is None and (specs := known(model)) is not None:
        called = (inputs_for(model, random_inputs(specs), who="capture"), {})
    if called is None:
        return _at_a_guess(model, proof)
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(f"{type(model).__name__} is TorchScript, which no graph shows: give the module it was made from")
    call = Call.of(*called)
    if call is None:
        raise CaptureError(f"{type(model).__name__} is called with what is neither tensor nor constant")
    try:
        return _captured(model, call, call.tensors(*called) or [], guess=False, proof=proof)
    except CaptureError:
        raise
    except Exception as error:
        raise does_not_run(model, error) from error


def does_not_run(model: nn.Module, error: Exception) -> PreconditionError:
    """That ``model`` raised ``error`` on the example input."""
    return PreconditionError(
        f"{type(model).__name__} does not run on the example input: {type(error).__name__}: {error}"
    )


def refused(model: nn.Module, refusal: Refusal | None) -> CaptureError:
    """That ``model`` cannot be said, and why."""
    return CaptureError(
        f"{type(model).__name__} cannot be traced into a graph: {refusal}. Make that code independent of tensor values, "
        "or name the layers to expand with where=[...]"
    )


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


def graph_module(model: nn.Module, recording: Recording) -> fx.GraphModule:
    """A recording as a module that shares its leaf modules with ``model``."""
    root = nn.Module()
    root.__dict__.update(model.__dict__)
    root.__dict__["_buffers"] = {**model._buffers, **recording.constants}
    # it writes its code when it is first run: passes only look at the graph
    gm = _LazyGraphModule(root, recording.graph, type(model).__name__)
    gm.training = model.training
    return gm


def _at_a_guess(model: nn.Module, proof: bool) -> Captured:
    call = Call.required(model)
    for tensors in guesses(model, call) if call is not None else ():
        try:
            return _captured(model, call, tensors, guess=True, proof=proof)  # type: ignore[arg-type]
        except CaptureError:
            raise
        except Exception:  # noqa: S112 - it does not run on this; another may fit
            continue
    raise CaptureError(
        f"what {type(model).__name__} takes cannot be guessed from its layers: give an example input "
        "(example_input=..., or --input-size)"
    )


class _RefusedError(Exception):
    """The whole cannot be said."""

    def __init__(self, recording: Recording, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.recording, self.refusal = recording, refusal


class _OpaqueError(Exception):
    """More parts are opaque than were known."""

    def __init__(self, parts: dict[str, Refusal]) -> None:
        super().__init__()
        self.parts = parts


def _captured(model: nn.Module, call: Call, tensors: list[Tensor], guess: bool, proof: bool) -> Captured:
    hidden: dict[str, Refusal] = {}
    for _ in range(_ROUNDS):
        try:
            one, others = _agreed(model, call, tensors, hidden, guess)
            if proof:
                prove(model, call, one, others)
        except _OpaqueError as more:
            hidden |= more.parts
            continue
        except _RefusedError as error:
            return Captured(call, error.recording, None, error.refusal)
        except UnprovenError as error:
            return Captured(call, one, None, Refusal(error.place, error.why))
        one.root, one.seen, one.before, one.outputs = nn.Module(), {}, {}, None  # they hold every value of the run
        one.opaque = hidden | one.opaque
        for node, x in zip(one.graph.find_nodes(op="placeholder"), () if guess else tensors, strict=False):
            node.meta[DIMENSIONS] = x.ndim
        return Captured(call, one, graph_module(model, one), None)
    raise CaptureError(f"{type(model).__name__} has more than {_ROUNDS} parts, one in the other, that no graph can say")


def _agreed(
    model: nn.Module, call: Call, tensors: list[Tensor], hidden: dict[str, Refusal], guess: bool
) -> tuple[Recording, list[tuple[Sequence[Tensor], Any]]]:
    """A run that others agree with: at another batch, at other sizes if the network takes them and it holds there."""
    failure: DisagreementError | None = None
    for sizes in (True,) if guess else (True, False):
        one = _run(model, call, tensors, hidden, sizes)
        for others, varied in variations(tensors):
            if varied and not sizes:
                continue
            try:
                other = _run(model, call, others, hidden, False)
            except (_OpaqueError, _RefusedError):
                raise
            except Exception:  # noqa: S112 - it does not take these
                continue
            try:
                agreed = Agreement(one, other)
                chosen = [choice for choice in one.choices if agreed.open(choice)]
                if chosen and guess:
                    _refuse_choice(chosen[0])
            except DisagreementError as error:
                failure = failure or error
                if varied and not guess:
                    continue  # it may hold at these sizes
                break
            if agreed.guessed or chosen or not sizes:
                _more_batches(model, call, tensors, one, hidden)
            _guard(one, chosen, sizes=failure is not None)
            settle(one, agreed, varied)
            return one, [(others, other.outputs)]
        if failure is None:  # there is nothing else that it takes
            settle(one, None, False)
            return one, []
    assert failure is not None
    raise _verdict(one, failure)


def _verdict(one: Recording, failure: DisagreementError) -> Exception:
    """The part in which runs differ is opaque; or the whole is refused, where that is no part."""
    why = Refusal(failure.place, failure.why)
    return _OpaqueError({failure.inside: why}) if failure.inside else _RefusedError(one, why)


def _run(
    model: nn.Module, call: Call, tensors: list[Tensor], hidden: dict[str, Refusal], sizes: bool
) -> Recording:
    """One run in which no more is opaque than is known to be, in all of its calls."""
    one = record(model, call, tensors, opaque=hidden, sizes=sizes)
    if one.refusal is not None:
        raise _RefusedError(one, one.refusal)
    more = one.opaque.keys() - hidden.keys()
    if more and (not sizes or any(len(one.calls[name]) > 1 for name in more)):
        raise _OpaqueError(one.opaque)
    hidden |= one.opaque
    return one


def _guard(one: Recording, chosen: Sequence[Choice], sizes: bool) -> None:
    """Let the graph check that it would have come the same way, and, with ``sizes``, that its inputs are of its sizes."""
    graph = one.graph
    for choice in chosen:
        last = max(choice.nodes, key=list(graph.nodes).index)
        with graph.inserting_after(last):
            asked = graph.call_function(choice.function, choice.numbers)
        with graph.inserting_after(asked):
            graph.call_function(require_choice, (asked, choice.outcome, choice.place))
    inputs = graph.find_nodes(op="placeholder")
    with graph.inserting_after(inputs[-1]):
        for node in reversed(inputs) if sizes else ():
            if len(node.meta[SHAPE]) > 1:
                graph.call_function(require_sizes, (node, str(node.target), node.meta[SHAPE][1:]))


def _refuse_choice(choice: Choice) -> None:
    """Python chose its way by a size that is only guessed."""
    error = DisagreementError(choice.nodes[0], "chooses its way by the size of its input, of which no example is known")
    error.inside, error.place = choice.inside, choice.place
    raise error


def _more_batches(
    model: nn.Module, call: Call, tensors: list[Tensor], one: Recording, hidden: dict[str, Refusal]
) -> None:
    """Check that code that looks at the batch does the same at one sample and at many."""
    batch = _batch(tensors)
    for wanted in (1, 2 * batch + 3):
        others = [_resized(x, batch, wanted, False) for x in tensors]
        try:
            other = _run(model, call, others, hidden, False)
        except (_OpaqueError, _RefusedError):
            raise
        except Exception:  # noqa: S112 - it does not take so many
            continue
        try:
            Agreement(one, other, guess=False)
        except DisagreementError as error:
            raise _verdict(one, error) from error


def variations(tensors: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], bool]]:
    """Other inputs of the kind of ``tensors``, and whether their sizes are others, too, not only the batch."""
    batch = _batch(tensors)
    if any(x.ndim > 2 or (x.ndim == 2 and not x.is_floating_point()) for x in tensors):
        yield [_resized(x, batch, batch + 1, True) for x in tensors], True
    yield [_resized(x, batch, batch + 1, False) for x in tensors], False
    yield [_resized(x, batch, batch, False) for x in tensors], False


def _batch(tensors: Sequence[Tensor]) -> int:
    return next((x.shape[0] for x in tensors if x.ndim), 0)


def _resized(x: Tensor, batch: int, wanted: int, sizes: bool) -> Tensor:
    """Another number of samples, other sizes, other values: the same ones at other places."""
    first = 1 if not x.is_floating_point() else 2
    for d, size in enumerate(x.shape):
        length = wanted if d == 0 and size == batch else size
        if sizes and d >= first:
            length = size // 2 if size >= 64 else 2 * size
        x = x.index_select(d, torch.arange(length, device=x.device) % max(size, 1))
    return x.flatten().roll(1).reshape(x.shape)
