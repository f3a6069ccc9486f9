"""``grad_reparam``: train layers as sums of linear branches, by what they do to gradients."""

from collections.abc import Mapping
from math import isfinite
from typing import cast

import torch
from torch import Tensor, nn

from nbcompile.core.errors import PreconditionError, UsageError
from nbcompile.core.layers import CONVOLUTIONS, LayerSpec, why_no_layer
from nbcompile.core.words import class_of
from nbcompile.core.wrappers import require_loaded, unwrap
from nbcompile.reparam.branches import BRANCHES, Branch, Scales, branches_of
from nbcompile.reparam.multipliers import GradReparam
from nbcompile.wide.giants import is_giant


def grad_reparam(
    model: nn.Module, branches: str = "rep", *, scales: Mapping[str, float | Tensor] | None = None
) -> GradReparam:
    """Train the layers of ``model`` as sums of linear branches with constant scales, at the cost of no branch.

    The network is not changed: no layer, key or shape. What `GradReparam.attach` changes is how its weights learn.

    The weights stay what they are: branches whose sum they are begin at 0, but for the full one.
    ``GradReparam.draw_`` begins with random ones instead.

    Args:
        model: any network; convolutions and linear layers of one weight are covered, transposed ones are not.
        branches: ``rep`` (of RepVGG): the kernel itself (``full``), one of a single place in its middle (``center``),
            one number a channel (``identity``); ``dbb`` (of Diverse Branch Block): ``full``, ``center``, and a 1×1
            layer before average pooling (``average``), without its 1×1 layer before the kernel, which is a product of
            two; ``expand``: ``rep``, and one kernel along each axis (``axes``: k×1 and 1×k, of ACNet). ``identity``
            needs as many outputs as inputs and a stride of 1, ``center`` and ``axes`` odd sizes; of branches that are
            the same, as in a 1×1 layer, there is one.
        scales: of kinds of branches, positive: a number, or one per output channel, ``(O,)``. As ``LAYER:KIND`` of one
            layer's. 1 where none is given: an entry that several branches reach learns as often as they are many.

    Returns:
        The layers that have more than one branch; nothing is attached yet.

    Raises:
        UsageError: if there is no such set of branches or no such scale, or no layer has more than one branch.
        PreconditionError: if the network is a giant.

    Source: Ding et al. 2023, arXiv:2205.15242 (RepOptimizers), which has ``rep``, and learns its scales in a run of
    their own; constant scales without a search, ``dbb``, ``expand``, and beginning at given weights are ours.
    """
    model = unwrap(model)
    require_loaded(model, "grad_reparam")
    if branches not in BRANCHES:
        raise UsageError(f"branches must be one of {', '.join(BRANCHES)}, not '{branches}'")
    if is_giant(model):
        raise PreconditionError(f"grad_reparam: {class_of(model)} is a giant: give the network that it came from")
    given = dict(scales or {})
    found: dict[str, tuple[nn.Parameter, list[Branch]]] = {}
    known: set[nn.Parameter] = set()
    for name, layer in model.named_modules():
        weight = _weight(layer)
        if weight is None or weight in known:
            continue
        spec, kinds = LayerSpec.of(layer), BRANCHES[branches]
        made = branches_of(spec, weight, kinds, _scales_of(name, spec, kinds, given))
        if len(made) > 1:
            found[name] = weight, made
            known.add(weight)
    if not found:
        raise UsageError(
            f"grad_reparam: no layer of {class_of(model)} has more than one branch of '{branches}': there is nothing "
            "to re-parameterize"
        )
    if unused := [key for key in given if ":" in key and key.partition(":")[0] not in found]:
        raise UsageError(f"scales: {unused[0]} is no branch of a layer here; there are {', '.join(found)}")
    return GradReparam(found)


def _weight(layer: nn.Module) -> nn.Parameter | None:
    """The weight of a layer that is covered."""
    covered = isinstance(layer, (*CONVOLUTIONS, nn.Linear)) and why_no_layer(layer) is None
    if not covered or getattr(layer, "transposed", False):
        return None
    weight = cast(nn.Parameter, layer.weight)
    return weight if weight.requires_grad else None


def _scales_of(name: str, spec: LayerSpec, kinds: tuple[str, ...], given: Mapping[str, float | Tensor]) -> Scales:
    """The scales of one layer, by kind.

    Raises:
        UsageError: if one is no positive number, of as many as there are outputs, or its kind is unknown.
    """
    found: dict[str, float | Tensor] = {}
    for key, scale in sorted(given.items(), key=lambda pair: ":" in pair[0]):  # a layer's own after those of all
        layer, colon, kind = key.rpartition(":")
        if kind not in kinds:
            raise UsageError(f"scales: there is no branch '{kind}' here, only {', '.join(kinds)}")
        if colon and layer != name:
            continue
        values = torch.as_tensor(scale)
        if values.shape not in ((), (spec.outputs,)):
            raise UsageError(
                f"scales: '{key}' must be one number, or {spec.outputs} for '{name}', not of shape "
                f"{tuple(values.shape)}"
            )
        if not all(isfinite(x) and x > 0 for x in values.flatten().tolist()):
            raise UsageError(f"scales: '{key}' must be > 0")
        found[kind] = scale
    return found
