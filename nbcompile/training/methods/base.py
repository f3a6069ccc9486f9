"""What a training method may do differently; the loop does the rest."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from nbcompile.training.config import TrainConfig


class Method(ABC):
    """One way to train a network. The loop calls the methods below in the order in which they stand here.

    Args:
        config: of the run.
        steps_per_epoch: optimiser steps.
    """

    name: ClassVar[str]

    def __init__(self, config: TrainConfig, steps_per_epoch: int) -> None:
        self.config, self.steps_per_epoch = config, steps_per_epoch

    @abstractmethod
    def prepare(self, model: nn.Module, example: Tensor) -> nn.Module:
        """The network that is trained.

        Args:
            model: a copy of the caller's, which may be changed.
            example: one image ``(1, C, H, W)``.
        """

    @abstractmethod
    def phase(self, epoch: int) -> str:
        """What happens in ``epoch``, counted from 0, in a word."""

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (a scalar) and logits ``(N, K)`` of a batch.

        Cross entropy against ``(1 - e) * one_hot + e / K``.

        Source: Szegedy et al. 2016, arXiv:1512.00567, sec. 7.
        """
        logits = model(images)
        return F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing), logits

    def after_step(self) -> None:  # noqa: B027  # most methods have nothing to do here
        """What follows every optimiser step."""

    @property
    def slope(self) -> float | None:
        """Of the inserted activations; None where there are none."""
        return None

    def fused(self, model: nn.Module) -> nn.Module | None:
        """What will be deployed in place of the trained ``model``; None where that is the model itself."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know of the method, beyond the weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027  # as above
        """The inverse of ``state_dict``."""
