"""Learning rate and parameter groups of the reference recipe."""

import math
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """Linear warm-up, then one cosine to zero.

    Attributes:
        peak: learning rate at the end of the warm-up.
        warmup: length of the warm-up, in optimiser steps, >= 0.
        steps: length of the whole run, in optimiser steps, > ``warmup``.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts.
    """

    peak: float
    warmup: int
    steps: int

    def lr(self, step: int) -> float:
        """Learning rate of optimiser step ``step``, counted from 0; exactly 0 from ``steps`` on."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        if step >= self.steps:
            return 0.0
        return 0.5 * self.peak * (1 + math.cos(math.pi * (step - self.warmup) / (self.steps - self.warmup)))


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
