"""Gradient re-parameterization: layers learn as sums of linear branches would, at the cost of the network.

Source: Ding et al. 2023, arXiv:2205.15242; what of it is ours: `nbcompile.reparam.grad_reparam`.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn

from nbcompile.core.errors import UsageError
from nbcompile.reparam.grad_reparam import grad_reparam
from nbcompile.reparam.multipliers import GradReparam
from nbcompile.training.methods.base import Method
from nbcompile.wide.giants import is_giant

if TYPE_CHECKING:
    from nbcompile.training.options.config import TrainConfig


class GradReparameterized(Method):
    """Trains the network as it is, by multiplied gradients."""

    def __init__(self, config: "TrainConfig", steps_per_epoch: int, teacher: nn.Module | None = None) -> None:
        super().__init__(config, steps_per_epoch, teacher)
        self._reparam: GradReparam | None = None

    def prepare(self, model: nn.Module) -> nn.Module:
        """The network itself; where that is asked for, with drawn branches added to its weights.

        Raises:
            UsageError: if it is a giant, or no layer has branches.
        """
        model = super().prepare(model)
        if is_giant(model):
            raise UsageError(
                "method 'grad-reparam' trains a network of the deployed size: give the network, not a giant"
            )
        found = grad_reparam(model, self.config.branches)
        if self.config.draw_branches:
            found.draw_(torch.Generator().manual_seed(self.config.seed))
        return model

    def attach(self, model: nn.Module, epoch: int) -> None:
        """From the first epoch on, gradients of ``model`` are multiplied."""
        super().attach(model, epoch)
        if self._reparam is None:
            self._reparam = grad_reparam(model, self.config.branches)
            self._reparam.attach()
