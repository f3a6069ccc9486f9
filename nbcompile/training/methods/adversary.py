"""A discriminator that tells two sets of images apart by a feature, and whose gradient is turned against the feature.

Source: Ganin and Lempitsky 2015, arXiv:1409.7495, sec. 3 (gradient reversal, and the weight that rises with the
training).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbcompile.core.copies import copied
from nbcompile.training.methods.features import Feature

HIDDEN_CHANNELS = 64
"""Hidden channels of the discriminator."""


def risen(progress: float) -> float:
    """``2 / (1 + exp(-10 p)) - 1``: from 0 to 1 while the training's ``progress`` p does."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


def reversed_gradient(x: Tensor, weight: Tensor) -> Tensor:
    """``x``, whose gradient is multiplied by ``-weight``, a scalar."""
    turned: Tensor = _Reversal.apply(x, weight)
    return turned


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return -weight * gradient, None


class Adversary(nn.Module):
    """A network and a discriminator of one of its features; in eval mode the network alone.

    A hook looks at the feature; `bare` gives the network without it.

    Args:
        network: to train.
        feature: of the network, ``(1, C, H, W)``.

    Attributes:
        discriminator: gives a logit per position: that the image is one of the labelled set.
        weight: of the gradient that the feature gets from it, a scalar.
    """

    weight: Tensor

    def __init__(self, network: nn.Module, feature: Feature) -> None:
        super().__init__()
        self.network, self.feature = network, feature
        self.discriminator = nn.Sequential(
            nn.Conv2d(feature.shape[1], HIDDEN_CHANNELS, 1), nn.ReLU(), nn.Conv2d(HIDDEN_CHANNELS, 1, 1)
        )
        self.register_buffer("weight", torch.zeros(()), persistent=False)
        self._seen: Tensor | None = None
        self._hook = _looking(self, network.get_submodule(feature.module))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits ``(N, K)``; in training also those of the discriminator, ``(N, 1, H, W)``."""
        logits: Tensor = self.network(images)
        if not self.training:
            return logits
        feature, self._seen = self._seen, None
        assert feature is not None
        return logits, self.discriminator(reversed_gradient(feature, self.weight))

    def bare(self) -> nn.Module:
        """A copy of the network, which nothing looks at."""
        network = copied(self.network)
        module = network.get_submodule(self.feature.module)
        (module._forward_hooks if self.feature.given else module._forward_pre_hooks).pop(self._hook)
        return network


def _looking(adversary: Adversary, module: nn.Module) -> int:
    """Let ``adversary`` see, in training, what ``module`` gives, or takes first; the hook's number, also in copies."""

    def given(module: nn.Module, args: Any, output: Tensor) -> None:
        if module.training:
            adversary._seen = output.clone()  # what follows may write into it

    def taken(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if module.training:
            adversary._seen = args[0].clone()

    if adversary.feature.given:
        return module.register_forward_hook(given).id
    return module.register_forward_pre_hook(taken).id


def telling_apart(logits: Tensor, *, labelled: bool) -> Tensor:
    """Half the discriminator's mean cross entropy on images of one set, in nats: of two sets both count alike.

    Args:
        logits: ``(N, 1, H, W)``.
        labelled: whether the images are of the labelled set.
    """
    logits = logits.float()
    truth = torch.full_like(logits, float(labelled))
    return 0.5 * F.binary_cross_entropy_with_logits(logits, truth)
