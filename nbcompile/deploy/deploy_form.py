"""The deploy form, which exporters lower: eval mode, every affine region merged that merges exactly and at no cost."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from nbcompile.core.copies import shadow, working_copy
from nbcompile.core.errors import CaptureError, PreconditionError
from nbcompile.core.example import Inputs, remember
from nbcompile.core.graph.guards import CheckedGraph
from nbcompile.core.progress import step
from nbcompile.core.running import storages
from nbcompile.core.serialization.own_ranges import forget_foreign_ranges, remember_ranges
from nbcompile.core.tracing.pieces import Piece, assemble, pieces
from nbcompile.core.wrappers import require_loaded
from nbcompile.pass_runner import run_pipeline
from nbcompile.passes import FUSE, PassResult

log = logging.getLogger("nbcompile")

_QUANTIZED = ("torch.ao.nn", "torch.nn.quantized", "torch.nn.intrinsic")
_BEFORE_QUANTIZED = (
    "torch.ao.nn.intrinsic.modules.fused",
    "torch.ao.nn.quantizable",
    "torch.ao.nn.quantized.modules.functional_modules",
)
"""Where modules of ``_QUANTIZED`` live that are float: fused ones, and stand-ins for sums, until they are converted."""

_OLD: dict[type, str] = {WeightNorm: "weight_norm", SpectralNorm: "spectral_norm"}


@dataclass(frozen=True)
class PassReport:
    """What the passes did to one captured part of a network.

    Attributes:
        piece: its qualified name; empty for the network itself.
        passes: name and result of each pass.
    """

    piece: str
    passes: tuple[tuple[str, PassResult], ...]


def deploy(model: nn.Module, inputs: Inputs) -> nn.Module:
    """The deploy form of a model without expansion blocks, as exporters lower it; a copy where it has none.

    Args:
        model: left as it is.
        inputs: what it is called with.
    """
    try:
        return compiled(model, inputs)[0]
    except CaptureError as error:
        log.warning("nothing is merged: %s", error)
        return working_copy(model, training=False)


@step("making the deploy form")
def compiled(
    model: nn.Module, inputs: Inputs | None, verify_each: bool = False, *, proof: bool = True
) -> tuple[nn.Module, tuple[PassReport, ...]]:
    """The deploy form of a model without expansion blocks, and what was done.

    Args:
        model: left as it is, and shares nothing with the result.
        inputs: what it is called with; None where that is not known.
        verify_each: run the graph before and after every pass and compare.
        proof: run the graph that was captured against the model.

    Returns:
        A GraphModule; where the model cannot be traced, its own class with what can be traced replaced.

    Raises:
        CaptureError: if nothing in it can be traced.
        PreconditionError: if it has values that nothing can be computed with.
    """
    require_values(model)
    tree = shadow(model, training=False)  # passes may take from its modules
    with step("tracing the network"):
        found = pieces(tree, inputs, proof=proof)
    if any(one.may_write for one in found):  # and passes may run it
        own_memory_(tree, model)
    reports = tuple(PassReport(one.name, _run(one, inputs, verify_each)) for one in found)
    result = assemble(tree, {one: one.graph for one in found})
    if isinstance(result, fx.GraphModule):
        result = CheckedGraph(result, result.graph, type(model).__name__)
    origin = forget_foreign_ranges(model, "fuse")
    remember(result, origin)
    result.eval()
    own_memory_(result, model)
    if origin is not None and origin.int8:
        remember_ranges(result, origin, origin.int8)
    return result, reports


def own_memory_(ours: nn.Module, theirs: nn.Module) -> None:
    """Give parameters of ``ours``, made of a shadow of ``theirs``, memory of their own where they have none."""
    shared = storages(theirs)
    for x in ours.parameters():
        if x.layout is not torch.strided or x.untyped_storage()._cdata in shared:
            x.data = x.detach().clone()


def require_values(model: nn.Module) -> None:
    """Check that every parameter and buffer has values that can be computed with.

    Raises:
        PreconditionError: naming the first that has not: it is on the meta device, quantized, NaN, or the result of
            the old ``torch.nn.utils.weight_norm`` or ``spectral_norm``, which cannot be copied.
    """
    for name, module in model.named_modules():
        who = f"'{name}'" if name else "the model itself"
        if (home := type(module).__module__).startswith(_QUANTIZED) and not home.startswith(_BEFORE_QUANTIZED):
            raise PreconditionError(f"fuse: {who} is quantized ({type(module).__name__}): fuse the float model first")
        for hook in cast(Iterable[Any], module._forward_pre_hooks.values()):
            old = _OLD.get(type(hook))
            if old is not None and getattr(module, hook.name).grad_fn is not None:
                raise PreconditionError(
                    f"fuse: {who} cannot be copied, its {hook.name} is computed by the old {old}: remove it with "
                    f"torch.nn.utils.remove_{old}, or use torch.nn.utils.parametrizations.{old}"
                )
    require_loaded(model, "fuse")
    for key, value in (*model.named_parameters(), *model.named_buffers()):
        inexact = value.is_floating_point() or value.is_complex()
        if value.is_quantized or (inexact and value.itemsize == 1):  # of float8, torch computes not even a sum
            kind = str(value.dtype).removeprefix("torch.")
            raise PreconditionError(f"fuse: '{key}' is quantized ({kind}): fuse the float model first")
        if inexact and bool(value.sum().isnan()) and bool(value.isnan().any()):  # the sum is cheap
            raise PreconditionError(f"fuse: '{key}' holds NaN: training diverged; take an earlier checkpoint")


def _run(piece: Piece, inputs: Inputs | None, verify_each: bool) -> tuple[tuple[str, PassResult], ...]:
    inputs = None if piece.name else inputs
    return tuple(run_pipeline(FUSE, piece.graph, {"inputs": inputs}, verify=inputs if verify_each else None).items())
