"""The pieces of a model that can be captured: the model itself, or the largest of its submodules that can.

Where the top of a model cannot be traced (detectors, control flow), its backbone and heads mostly can; and where a
submodule stays opaque in a graph, there are pieces inside it. Compiled, they are put back in its place.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from nbcompile.core.errors import CaptureError, PreconditionError
from nbcompile.core.example import Inputs, random_inputs
from nbcompile.core.graph.guards import is_guarded
from nbcompile.core.graph.nodes import layer_of
from nbcompile.core.graph.operators import called
from nbcompile.core.graph.replace import put
from nbcompile.core.layers import why_changed
from nbcompile.core.tracing.call import Call
from nbcompile.core.tracing.capture import capture_call, opaque, refused
from nbcompile.core.tracing.compiled_piece import CompiledPiece, dressed
from nbcompile.core.tracing.modules import is_leaf
from nbcompile.core.tracing.recording import Recording
from nbcompile.core.tracing.rounds import Captured

_LAYERS = (_ConvNd, nn.Linear)
Called = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Piece:
    """A captured part of a model.

    Attributes:
        name: qualified name of the module in the model; empty for the model itself.
        graph: shares its leaf modules with the model; its placeholders are the tensors of ``call``, in order.
        call: how the module is called: any other kind of call is not in the graph.
        may_write: whether running the module may write into its parameters.
        elsewhere: tensors of another such call, on which it was seen to do the same; None if there are none.
    """

    name: str
    graph: fx.GraphModule
    call: Call
    may_write: bool = True
    elsewhere: Sequence[Tensor] | None = None


def pieces(model: nn.Module, inputs: Inputs | None = None, *, proof: bool = True) -> tuple[Piece, ...]:
    """The model itself if it can be captured, and the pieces of what is opaque in it; else those of its children.

    Outer pieces come first. Beside the model itself, a piece holds a convolution or linear layer, carries no hooks
    (a graph would lose them), and is called in one way, which is the way that its graph shows.

    Args:
        model: any module; left as it was.
        inputs: what it is called with; None as of :func:`nbcompile.core.tracing.capture.capture`.
        proof: as there.

    Raises:
        CaptureError: if there is no piece, with the reason.
        PreconditionError: if the model does not run on ``inputs``.
    """
    search = _Search(proof)
    search.visit("", model, None if inputs is None else (inputs, {}))
    if not search.pieces:
        raise search.failure or CaptureError(
            f"nothing in {type(model).__name__} can be captured: no part of it that holds a convolution or linear "
            "layer is called in one way, with tensors, and carries no hooks"
        )
    return tuple(search.pieces)


def assemble(tree: nn.Module, compiled: dict[Piece, fx.GraphModule]) -> nn.Module:
    """``tree`` with compiled graphs in the places of its pieces, under every name that each has.

    Args:
        tree: what ``pieces`` was asked about; its submodules are replaced, so it must be a copy of the user's.
        compiled: for each piece that is to be replaced its graph, outer ones first, as ``pieces`` gives them.

    Returns:
        ``tree`` itself, or its graph where the model itself is a piece that takes tensors and nothing else.
    """
    for piece in reversed(compiled):  # inner ones first: an outer one hides their names
        original = tree.get_submodule(piece.name)
        if not piece.name:
            return compiled[piece] if piece.call.is_plain else dressed(original, compiled[piece], piece.call)
        new: nn.Module = compiled[piece]
        if not isinstance(tree.get_submodule(piece.name.rpartition(".")[0]), CompiledPiece):
            new = dressed(original, compiled[piece], piece.call)
        for holder in (tree, *compiled.values()):
            put(holder, original, new)
    return tree


class _Search:
    """Walks down from a model to its pieces, each module once."""

    def __init__(self, proof: bool) -> None:
        self._proof = proof
        self.pieces: list[Piece] = []
        self.failure: CaptureError | None = None
        self._visited: set[nn.Module] = set()
        self._runs: list[tuple[str, Recording]] = []

    def visit(self, name: str, module: nn.Module, called: Called | None) -> None:
        if module in self._visited or (name and not _may_hold_pieces(module)):
            return
        self._visited.add(module)
        found = None if isinstance(module, CompiledPiece) else self._captured(name, module, called)
        inner = dict(module.named_children())
        if found is not None and found.graph is not None and (name or not _is_for_few(found)):
            inner = opaque(found.graph)
            self._keep(name, found)
        if found is not None:
            self._runs.append((f"{name}." if name else "", found.recording))
        for child, inside in inner.items():
            self._visit_inner(f"{name}.{child}".lstrip("."), inside)

    def _visit_inner(self, name: str, module: nn.Module) -> None:
        """As it was called in the innermost run in which it was; a module that was called in several ways is none."""
        for prefix, recording in reversed(self._runs):
            inside = name.removeprefix(prefix)
            if name.startswith(prefix) and inside in recording.calls:
                if (called := _call_of(recording, inside)) is not None:
                    return self.visit(name, module, called)
                for child, part in module.named_children() if _may_hold_pieces(module) else ():
                    self._visit_inner(f"{name}.{child}", part)
                return None
        return self.visit(name, module, None)

    def _captured(self, name: str, module: nn.Module, called: Called | None) -> Captured | None:
        if why_changed(module):
            return None
        try:
            found = capture_call(module, called, proof=self._proof)
        except CaptureError as error:
            self.failure = self.failure or error
            return None
        except PreconditionError:
            if not name:
                raise
            return None  # by itself, and with drawn inputs, it may not run
        if name and found.recording.asks_layout:  # it is drawn, and may lie in memory in another way than in the model
            return replace(found, graph=None)
        if found.graph is None:
            self.failure = self.failure or refused(module, found.refusal)
        return found

    def _keep(self, name: str, found: Captured) -> None:
        graph = cast(fx.GraphModule, found.graph)
        if not name or _computes_layers(graph):
            may_write = bool(found.writes or name or opaque(graph))  # code that is opaque may do anything
            self.pieces.append(Piece(name, graph, found.call, may_write, found.elsewhere))


def _is_for_few(found: Captured) -> bool:
    """Whether a whole model holds for the example's sizes only, as a detector: its parts may hold for all."""
    return not found.call.is_plain and is_guarded(cast(fx.GraphModule, found.graph))


def _call_of(recording: Recording, child: str) -> Called | None:
    """How ``child`` was called in a run, where it was always called so, with tensors like those."""
    calls = recording.calls.get(child, [])
    call = calls[0][0] if calls else None
    if call is None or child in recording.passed_by or any(other != call for other, _ in calls):
        return None
    return call.filled(random_inputs(calls[0][1]))


def _may_hold_pieces(module: nn.Module) -> bool:
    if isinstance(module, _LAYERS) or is_leaf(module):
        return False
    return any(isinstance(m, _LAYERS) for m in module.modules())


def _computes_layers(gm: fx.GraphModule) -> bool:
    return any(layer_of(gm, node) is not None or called(node).layer for node in gm.graph.nodes)
