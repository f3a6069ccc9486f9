"""``expand``: the user's network with expansion blocks in it, of the user's own class."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import fx, nn
from torch.utils._pytree import tree_leaves

from nbcompile.core.blocks import sites
from nbcompile.core.copies import working_copy
from nbcompile.core.errors import CaptureError, PreconditionError
from nbcompile.core.example import ExampleInput, Inputs, Origin, inputs_for, origin_of, remember, specs
from nbcompile.core.graph.nodes import calls
from nbcompile.core.graph.replace import put_all
from nbcompile.core.layers import CONVOLUTIONS
from nbcompile.core.progress import step
from nbcompile.core.running import seldom_collected, tensors_of
from nbcompile.core.serialization.describe import describe_model, unreadable
from nbcompile.core.tracing.capture import capture, opaque
from nbcompile.core.tracing.observe import is_observed, observe
from nbcompile.core.tracing.pieces import Piece, pieces
from nbcompile.core.wrappers import require_names, unwrap
from nbcompile.giant_probe import LayerNeededError, probe
from nbcompile.pass_runner import run_passes
from nbcompile.passes import ExpandSites
from nbcompile.passes.sites.select import named_patterns
from nbcompile.wide.giants import refuse_wide

log = logging.getLogger("nbcompile")


@seldom_collected()
@step("expanding")
def expand(
    model: nn.Module,
    example_input: ExampleInput | None = None,
    where: str | Sequence[str] = "uniform:0.5",
    block: str = "inverted-residual",
    ratio: int = 6,
    preserve: bool = False,
    *,
    pad_first: bool = False,
    verify_each: bool = False,
    proof: bool = True,
) -> nn.Module:
    """A giant: a copy of ``model`` in which some layers are expansion blocks.

    Args:
        model: any module; it is not changed. Wrappers (DDP, ``torch.compile``) are seen through.
        example_input: what ``forward`` takes: a tensor, or several; the first dimension is the batch. A list of tensors
            as one input (a detector's images) stands inside: ``([image, image],)``. May be left out where the model
            remembers it.
        where: which candidates: ``uniform:F``, ``first:N``, ``middle:N``, ``last:N``, ``all``; or a list of names
            and globs, which may name any convolution or linear layer. A rule passes over layers that cannot be
            expanded; to name one is an error.
        block: ``inverted-residual``, ``bottleneck`` or ``basic``; a linear layer always becomes two.
        ratio: hidden width over the layer's *input* channels, >= 1.
        preserve: keep each original layer as a parallel branch: outputs are the model's own at first, so a *trained*
            network can be expanded.
        pad_first: where the layer's kernel is over 1: move its padding to a first 1×1 layer, instead of putting the
            k×k layer first. Both contract exactly; the zero ring of the former disturbs the inner norm's batch
            statistics, and trained worse (``benchmarks/kernel_order.py``).
        verify_each: with ``preserve``, run the graph before and after the pass and compare.
        proof: run the graph in which sites were found against the model, and the giant's graph against the giant.

    Returns:
        The giant: same class, same mode, same keys outside the sites.

    Raises:
        CaptureError: if a child has a name that graphs need for themselves.
        PostconditionError: if the giant's graph does not compute what the giant does.
        PreconditionError: if a layer cannot be expanded; it is named.
        UsageError: if the options do not fit; candidates are listed.

    Source: NetBooster (arXiv 2306.13586) sec. 3.3 and 4.1; ``preserve`` and the borders are ours.
    """
    model = unwrap(model)
    require_names(model, "expand")
    refuse_wide(model, "expand", "expand the network first, and widen the giant: widen(expand(model))")
    inputs = inputs_for(model, example_input, who="expand")
    expander = ExpandSites(where, block, ratio, preserve, pad_first)
    while True:
        try:
            giant, gm = _expanded(model, inputs, expander, inputs if verify_each and preserve else None, proof)
            break
        except LayerNeededError as refusal:
            if named_patterns(where) is not None or refusal.layer in expander.spared:
                raise
            expander = replace(expander, spared=expander.spared | {refusal.layer})  # a rule goes on without it
    known = origin_of(model)
    remember(giant, Origin(specs(inputs), known.model if known else None, known.preprocessing if known else {}))
    with step("describing it"):
        _attach_record(giant, gm, inputs)
    _tell(giant)
    return giant


def record_again(giant: nn.Module) -> None:
    """Let the record that ``giant`` carries describe it as it is now, after a change by hand.

    Args:
        giant: remembers its input; only its record is changed.
    """
    inputs = inputs_for(giant, None, who="record_again")
    gm = _seen(giant, inputs).gm
    _attach_record(giant, gm, inputs)


def _attach_record(giant: nn.Module, gm: fx.GraphModule, inputs: Inputs) -> None:
    origin = origin_of(giant) or Origin(specs(inputs))
    try:
        description = describe_model(giant, _whole(giant, gm, inputs), origin)
    except CaptureError as error:
        description = unreadable(giant, origin, str(error))
    next(iter(sites(giant).values())).attach_record({"model": description})


@seldom_collected()
@step("looking for candidates")
def candidates(model: nn.Module, example_input: ExampleInput | None = None) -> tuple[str, tuple[str, ...]]:
    """The layers that the rules of ``where`` choose from, in graph order, and the pattern that found them.

    Args:
        model: left as it is.
        example_input: as of :func:`expand`.
    """
    model = unwrap(model)
    require_names(model, "inspect")
    seen = _seen(working_copy(model), inputs_for(model, example_input, who="inspect"))
    return ExpandSites(parts=seen.parts).candidates(seen.gm)


def _expanded(
    model: nn.Module, inputs: Inputs, expander: ExpandSites, verify: Inputs | None, proof: bool
) -> tuple[nn.Module, fx.GraphModule]:
    """A giant made from a copy of ``model``, and the graph in which its sites were found."""
    giant = working_copy(model, tensors=False)
    with step("tracing the network"):
        seen = _seen(giant, inputs, proof)
    gm = seen.gm
    _require_called(giant, gm, named_patterns(expander.where) or [])
    layers = dict(gm.named_modules())
    (result,) = run_passes((replace(expander, parts=seen.parts),), gm, verify)
    put_all(giant, {layers[name]: gm.get_submodule(name) for name in result.rewritten})
    with step("running the giant as its original ran"):
        nodes = calls(gm)
        called = {name: len(nodes[gm.get_submodule(name)]) for name in result.rewritten}
        provable = gm if proof and not is_observed(gm) else None
        probe(giant, model, seen.tried(inputs), called, provable, may_write=seen.may_write)
    return giant, gm


@dataclass(frozen=True)
class _Seen:
    """What is known of a model.

    Attributes:
        gm: the captured graph; where that hides a tensor or cannot be had, the graph of one run.
        parts: the pieces then.
        may_write: whether a run in eval mode may write into parameters.
        elsewhere: other inputs on which it was seen to do the same.
    """

    gm: fx.GraphModule
    parts: tuple[Piece, ...] = ()
    may_write: bool = True
    elsewhere: Inputs | None = None

    def tried(self, inputs: Inputs) -> tuple[Inputs, ...]:
        """``inputs``, and before them others that do as well, if these are smaller."""
        ours, others = (sum(x.numel() for x in tree_leaves(one)) for one in (inputs, self.elsewhere or ()))
        return (inputs,) if not 0 < others < ours else (self.elsewhere or (), inputs)


def _seen(giant: nn.Module, inputs: Inputs, proof: bool = True) -> _Seen:
    found: tuple[Piece, ...] = ()
    with suppress(CaptureError):
        found = pieces(giant, inputs, proof=proof)
    if found and not found[0].name and found[0].call.is_plain:
        one = found[0]
        if not any(True for module in opaque(one.graph).values() for _ in tensors_of(module)):
            return _Seen(one.graph, (), one.may_write, None if one.elsewhere is None else tuple(one.elsewhere))
    return _Seen(observe(giant, inputs), found)


def _whole(giant: nn.Module, gm: fx.GraphModule, inputs: Inputs) -> fx.GraphModule:
    """The graph for the record: what was observed in one run is not the model.

    Raises:
        CaptureError: if there is none.
    """
    return capture(giant, inputs) if is_observed(gm) else gm


def _require_called(giant: nn.Module, gm: fx.GraphModule, patterns: Sequence[str]) -> None:
    """Say why a layer that the model has, and ``where`` names, is not in the graph."""
    nodes = calls(gm)
    layers = {n: m for n, m in giant.named_modules(remove_duplicate=False) if isinstance(m, (*CONVOLUTIONS, nn.Linear))}
    for pattern in patterns:
        named = [name for name in layers if fnmatchcase(name, pattern)]
        if not named or any(layers[name] in nodes for name in named):
            continue
        parts = named[0].split(".")
        parents = {path: giant.get_submodule(path) for i in range(1, len(parts)) if (path := ".".join(parts[:i]))}
        why = next(
            (
                f"it is inside '{p}' ({type(m).__name__}), which reads its weight directly"
                for p, m in parents.items()
                if m in nodes
            ),
            "it is not reached by the example input in eval mode",
        )
        raise PreconditionError(f"expand: '{named[0]}' cannot be expanded: {why}; name other layers with where=[...]")


def _tell(giant: nn.Module) -> None:
    """Say which blocks had to do without norms."""
    bare = [name for name, block in sites(giant).items() if block.spec.inner == "scale"]
    if bare:
        log.warning(
            "expand: %d of %d blocks have per-channel scales instead of norms and biases, because neither a bias nor "
            "the norms that follow could take their shift at fuse (the first: '%s')",
            len(bare),
            len(sites(giant)),
            bare[0],
        )
