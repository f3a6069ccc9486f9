"""Which parameters share a learning rate and a weight decay."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from nbcompile.core.blocks import sites


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for the optimiser: weights that decay; biases, norm parameters and scales that do not.

    Args:
        model: its trainable parameters are taken, shared ones once.
        weight_decay: of the first group.
    """
    layer_norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = name.endswith("bias") or parameter.ndim <= 1 or id(parameter) in layer_norms
        (plain if exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def inserted_groups(
    groups: Sequence[Mapping[str, Any]], giant: nn.Module, lr_scale: float, decay_scale: float
) -> list[dict[str, Any]]:
    """``groups``, with the parameters that ``expand`` inserted in groups of their own.

    Args:
        groups: of the optimiser.
        giant: their network; a layer that is preserved as a parallel branch is not inserted.
        lr_scale: of inserted parameters, a factor on the learning rate.
        decay_scale: of inserted parameters, a factor on the weight decay.
    """
    blocks = sites(giant).values()
    own = {id(p) for block in blocks for p in (block.original.parameters() if block.original is not None else ())}
    inserted = {id(p) for block in blocks for p in block.parameters()} - own
    found = []
    for group in groups:
        for new in (False, True):
            params = [p for p in group["params"] if (id(p) in inserted) == new]
            scales = {"lr_scale": lr_scale, "weight_decay": group["weight_decay"] * decay_scale} if new else {}
            found.append({**group, **scales, "params": params})
    return [group for group in found if group["params"]]
