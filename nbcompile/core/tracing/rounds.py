"""Runs of a network, compared until they agree on what is opaque, what depends on sizes, and what is computed."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule

from nbcompile.core.errors import CaptureError
from nbcompile.core.graph.guards import is_guarded, require_same_choice, require_sizes
from nbcompile.core.graph.ranks import DIMENSIONS
from nbcompile.core.tracing.agree import Comparison, DisagreementError, settle
from nbcompile.core.tracing.call import Call
from nbcompile.core.tracing.inputs import batch_of, open_sizes, other_input, variations
from nbcompile.core.tracing.record import ModelError, record
from nbcompile.core.tracing.recording import Choice, Reason, Recording
from nbcompile.core.tracing.replay import UnprovenError, outputs_at, prove, refuses
from nbcompile.core.tracing.rig import Rig
from nbcompile.core.tracing.values import SHAPE

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
        writes: whether the model may write into its parameters; False where runs have shown that it does not.
        elsewhere: tensors of another such call, on which the model was seen to do the same; None if there are none.
    """

    call: Call
    recording: Recording
    graph: fx.GraphModule | None
    refusal: Reason | None
    writes: bool = True
    elsewhere: Sequence[Tensor] | None = None


class _RefusedError(Exception):
    """The whole cannot be said."""

    def __init__(self, recording: Recording, refusal: Reason) -> None:
        super().__init__(str(refusal))
        self.recording, self.refusal = recording, refusal


class _OpaqueError(Exception):
    """More parts are opaque than were known."""

    def __init__(self, parts: dict[str, Reason]) -> None:
        super().__init__()
        self.parts = parts


def capture_in_rounds(model: nn.Module, call: Call, tensors: list[Tensor], guess: bool, proof: bool) -> Captured:
    """Run ``model`` until no more of it turns out to be opaque, and make a graph of what runs agree on.

    Args:
        model: left as it is.
        call: how it is called.
        tensors: of the call.
        guess: whether they are nobody's example: then no code may choose its way by their sizes.
        proof: whether the graph is run, too, and compared.

    Raises:
        CaptureError: if parts in parts are opaque without end.
        ModelError: if the model raises.
    """
    rig = Rig(model)
    known = _Known(rig, call, tensors, guess, {})
    for _ in range(_ROUNDS):
        try:
            one, other = known.agreed()
            if proof:
                prove(rig, call, one, other, partial(record, call=call, opaque=one.opaque))
        except _OpaqueError as more:
            known.hidden.update(more.parts)
            continue
        except _RefusedError as error:
            return Captured(call, error.recording, None, error.refusal)
        except UnprovenError as error:
            return Captured(call, one, None, Reason(error.place, error.why))
        one.root = one.outputs = None
        one.opaque = known.hidden | one.opaque
        for node, x in zip(one.graph.find_nodes(op="placeholder"), () if guess else tensors, strict=False):
            node.meta[DIMENSIONS] = x.ndim
        gm = graph_module(model, one)
        seen = None if is_guarded(gm) or other is None else other[0]
        return Captured(call, one, gm, None, rig.writes, seen)
    raise CaptureError(f"{type(model).__name__} has more than {_ROUNDS} parts, one in the other, that no graph can say")


@dataclass(frozen=True, eq=False)
class _Known:
    """A network, how it is called, whether that is a guess, and which parts of it are known to be opaque."""

    rig: Rig
    call: Call
    tensors: list[Tensor]
    guess: bool
    hidden: dict[str, Reason]

    def agreed(self) -> tuple[Recording, tuple[Sequence[Tensor], Any] | None]:
        """A run that others agree with: at another batch, at other sizes if the network takes them and it holds."""
        failures: list[tuple[DisagreementError, Sequence[Tensor]]] = []
        for sizes in (True,) if self.guess else (True, False):
            self.rig.clear()
            one = self._run(self.tensors, sizes)
            for others, varied in variations(self.tensors):
                if varied and not sizes:
                    continue
                try:
                    other = self._run(others, False)
                except ModelError:
                    continue
                told: Comparison | None = None
                try:
                    told = Comparison(one, other)
                    _guard_sizes(one, self._untested(one, told, others, varied, sizes, [at for _, at in failures]))
                except DisagreementError as error:
                    failures.append((error, others))
                    if told is None and varied and not self.guess:
                        continue  # it may hold at these sizes
                    break  # what was taken for sizes is in the graph now
                settle(one, told, varied)
                return one, (others, other.outputs)
            if not failures:  # there is nothing else that it takes
                settle(one, None, False)
                return one, None
        raise _verdict(one, failures[0][0])

    def _run(self, tensors: list[Tensor], sizes: bool) -> Recording:
        """One run in which no more is opaque than is known to be, in all of its calls."""
        one = record(self.rig, self.call, tensors, opaque=self.hidden, sizes=sizes)
        if one.refusal is not None:
            raise _RefusedError(one, one.refusal)
        more = one.opaque.keys() - self.hidden.keys()
        if more and (not sizes or any(len(one.calls[name]) > 1 for name in more)):
            raise _OpaqueError(one.opaque)
        self.hidden.update(one.opaque)
        return one

    def _untested(
        self,
        one: Recording,
        told: Comparison,
        others: list[Tensor],
        varied: bool,
        sizes: bool,
        failed: Sequence[Sequence[Tensor]],
    ) -> list[set[int]]:
        """The dimensions of inputs in which the graph may hold for the sizes seen only; its choices are guarded."""
        chosen = [choice for choice in one.choices if told.open(choice, varied)]
        if chosen and self.guess:
            _refuse_choice(chosen[0])
        batch = batch_of(self.tensors)
        if told.guessed or not sizes or one.asks_layout or any(map(told.differs, chosen)):
            for wanted in {1, 2 * batch + 1} - {batch}:
                self._must_agree(one, [other_input(x, batch, wanted) for x in self.tensors])
        _guard_choices(one, chosen)
        untested = [set(range(1, x.ndim)) for x in self.tensors]
        if sizes and all(refuses(self.rig, one, at) for at in failed):  # else it is another there, unseen
            untested = open_sizes(self._takes, self.tensors, others)
        if not self.guess:
            return untested
        self._must_agree(one, [other_input(x, -1, -1, dims) for x, dims in zip(self.tensors, untested, strict=True)])
        return [set() for _ in self.tensors]  # no size that was guessed is one to hold on to

    def _must_agree(self, one: Recording, others: list[Tensor]) -> None:
        """Check that the network does the same on ``others``, if it takes them.

        Raises:
            DisagreementError: if it does not.
        """
        with suppress(ModelError):
            Comparison(one, self._run(others, False), guess=False)

    def _takes(self, tensors: Sequence[Tensor]) -> bool:
        try:
            with self.rig.running() as root:
                outputs_at(root, self.call, tensors)
        except Exception:
            return False
        return True


def _verdict(one: Recording, failure: DisagreementError) -> Exception:
    """The part in which runs differ is opaque; or the whole is refused, where that is no part."""
    why = Reason(failure.place, failure.why)
    return _OpaqueError({failure.inside: why}) if failure.inside else _RefusedError(one, why)


def _guard_choices(one: Recording, chosen: Sequence[Choice]) -> None:
    """Let the graph check that it would have come the same way."""
    for choice in chosen:
        last = max(choice.nodes, key=list(one.graph.nodes).index)
        with one.graph.inserting_after(last):
            asked = one.graph.call_function(choice.function, choice.numbers)
        with one.graph.inserting_after(asked):
            one.graph.call_function(require_same_choice, (asked, choice.outcome, choice.place))


def _guard_sizes(one: Recording, untested: Sequence[Collection[int]]) -> None:
    """Let the graph check that sizes in ``untested`` dimensions are as seen."""
    inputs = one.graph.find_nodes(op="placeholder")
    with one.graph.inserting_after(inputs[-1]):
        for node, dims in reversed(list(zip(inputs, untested, strict=True))):
            if dims:
                sizes = tuple(n if d in dims else None for d, n in enumerate(node.meta[SHAPE]))
                one.graph.call_function(require_sizes, (node, str(node.target), sizes[1:]))


def _refuse_choice(choice: Choice) -> None:
    """Python chose its way by a size that is only guessed."""
    error = DisagreementError(choice.nodes[0], "chooses its way by the size of its input, of which no example is known")
    error.inside, error.place = choice.inside, choice.place
    raise error


def graph_module(model: nn.Module, recording: Recording) -> fx.GraphModule:
    """A recording as a module that shares its leaf modules with ``model``."""
    root = nn.Module()
    root.__dict__.update(model.__dict__)
    root.__dict__["_buffers"] = {**model._buffers, **recording.constants}
    # it writes its code when it is first run: passes only look at the graph
    gm = _LazyGraphModule(root, recording.graph, type(model).__name__)
    gm.training = model.training
    return gm
