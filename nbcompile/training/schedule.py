"""Learning rate and parameter groups of the reference recipe."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from nbcompile.core.blocks import sites


@dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """Linear warm-up, then one cosine to zero, or several, each from the peak.

    Attributes:
        peak: learning rate at the end of the warm-up.
        warmup: length of the warm-up, in optimiser steps, >= 0.
        steps: length of the whole run, in optimiser steps, > ``warmup``.
        restarts: optimiser steps at which another cosine begins, rising, between ``warmup`` and ``steps``.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983.
    """

    peak: float
    warmup: int
    steps: int
    restarts: Sequence[int] = ()

    def lr(self, step: int) -> float:
        """Learning rate of optimiser step ``step``, counted from 0; exactly 0 from ``steps`` on."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        if step >= self.steps:
            return 0.0
        points = (self.warmup, *self.restarts, self.steps)
        i = bisect_right(points, step)
        start, end = points[i - 1], points[i]
        return 0.5 * self.peak * (1 + math.cos(math.pi * (step - start) / (end - start)))


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
