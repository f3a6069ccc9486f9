"""Muon for what is a product with a matrix, SGD for all else, in one optimizer.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon, as ``torch.optim.Muon`` has it. That takes
matrices alone: a pointwise convolution is given to it as the matrix that it is, in the same memory. The factor between
the two learning rates, and a weight decay that shrinks weights as SGD's does in the long run, are ours.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize
from torch.optim import SGD, Muon

from nbcompile.core.layers import CONVOLUTIONS

FACTOR = 0.2
"""Muon's learning rate over SGD's: 0.02, which it is published with, at the recipe's 0.1."""


class SGDWithMuon(SGD):
    """SGD; groups with ``muon`` are stepped by Muon, at ``FACTOR`` times their learning rate.

    Weight decay of those is Muon's, decoupled: a step shrinks weights by ``lr * weight_decay / (1 - momentum)``, as
    SGD's momentum adds up to.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        every = self.param_groups
        self.param_groups = [group for group in every if not group.get("muon")]
        try:
            loss: float | None = super().step(closure)
        finally:
            self.param_groups = every
        for group in every:
            if group.get("muon"):
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: Mapping[str, Any]) -> None:
        learning = [p for p in group["params"] if p.grad is not None]
        if not learning:
            return
        matrices = [nn.Parameter(p.detach().view(len(p), -1)) for p in learning]
        muon = Muon(
            matrices,
            lr=FACTOR * group["lr"],
            weight_decay=group["weight_decay"] / (FACTOR * (1 - group["momentum"])),
            momentum=group["momentum"],
            nesterov=group["nesterov"],
        )
        for matrix, p in zip(matrices, learning, strict=True):
            matrix.grad = p.grad.flatten(1)
            muon.state[matrix] = self.state[p]  # which is what is saved, and resumed from
        muon.step()  # type: ignore[no-untyped-call]


def with_matrices(groups: Sequence[Mapping[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """``groups``, with the matrices of ``model`` in groups of their own, marked ``muon``.

    Those are the weights of pointwise convolutions and of linear layers, but for layers with as many outputs as the
    last one has: classifiers.

    Args:
        groups: of the optimizer.
        model: their network.
    """
    kinds = (*CONVOLUTIONS, nn.Linear)
    weights = [(m, _stored(m)) for m in model.modules() if isinstance(m, kinds)]
    logits = len(weights[-1][1]) if weights else 0
    hidden = {id(weight) for layer, weight in weights if len(weight) != logits and _is_matrix(layer)}
    found = []
    for group in groups:
        for muon in (False, True):
            params = [p for p in group["params"] if (id(p) in hidden) == muon]
            if params:
                found.append({**group, "params": params, "muon": muon})
    return found


def _is_matrix(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear):
        return True
    conv = cast(_ConvNd, layer)
    return all(size == 1 for size in conv.kernel_size) and conv.groups == 1 and not conv.transposed


def _stored(layer: nn.Module) -> Any:
    """The parameter that is the layer's weight, or that its weight is a part of, as in giants in width."""
    if parametrize.is_parametrized(layer, "weight"):
        return cast(Any, layer).parametrizations.weight.original
    return layer.weight
