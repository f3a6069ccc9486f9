"""Rocket launching: a booster trains beside the network, shares its first layers, and is thrown away.

Source: Zhou et al. 2018, arXiv:1708.04106: both learn from labels; a hint draws the network's logits to the booster's,
whose own weights it does not reach ("gradient block"); norms are separate. That the booster is the network with
expanded layers, and the recipe, which is the same for all methods here, are ours.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from nbcompile.core.blocks import Expanded, sites
from nbcompile.core.copies import copied
from nbcompile.core.cost import cost
from nbcompile.core.errors import UsageError
from nbcompile.core.example import inputs_for, origin_of, remember
from nbcompile.core.layers import CONVOLUTIONS
from nbcompile.expansion import expand
from nbcompile.training.batch import Batch
from nbcompile.training.methods.base import Method
from nbcompile.wide.giants import is_giant


class Launch(nn.Module):
    """The network and its booster; in eval mode the network alone."""

    def __init__(self, network: nn.Module, booster: nn.Module) -> None:
        super().__init__()
        self.network, self.booster = network, booster

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of the network; in training also those of the booster."""
        logits: Tensor = self.network(images)
        return (logits, self.booster(images)) if self.training else logits


class Rocket(Method):
    """Trains both; what is kept is the network."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """The network, with its booster beside it.

        Raises:
            UsageError: if it is a giant, or nothing would be shared.
        """
        if is_giant(model):
            raise UsageError("method 'rocket' makes the giant itself: give the network, not a giant")
        c = self.config
        (example,) = inputs_for(model, None, who="train")
        booster = expand(model, example, where=c.where, block=c.block, ratio=c.ratio)
        model = copied(model)
        if not share_first_layers(model, booster):
            raise UsageError(
                f"rocket: the booster shares no layer with the network, for '{next(iter(sites(booster)))}', the first, "
                "is expanded: expand later ones, as in --where last:3"
            )
        launch = Launch(model, booster)
        launch.train(model.training)
        remember(launch, origin_of(model))
        return launch

    def phase(self, epoch: int) -> str:
        """Always the same."""
        return "launch"

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both cross entropies, and the hint."""
        logits, above = model(batch.images)
        own, boosted = (self.cross_entropy_of(x, batch.targets) for x in (logits, above))
        hint = self.task.distance(logits, tree_map(Tensor.detach, above))
        return own + boosted + self.config.hint_weight * hint, logits

    def kept(self, model: nn.Module) -> nn.Module:
        """The network."""
        return cast(Launch, model).network

    def macs(self, model: nn.Module, example: Tensor) -> tuple[int, int]:
        """See `Method.macs`."""
        launch = cast(Launch, model)
        return cost(launch.network, example).macs, cost(launch.booster, example).macs


@torch.no_grad()
def share_first_layers(network: nn.Module, booster: nn.Module) -> int:
    """Let ``booster`` have the weights of the layers of ``network`` that come before its first expanded one.

    Norms stay apart.

    Returns:
        How many layers are shared.
    """
    shared = 0
    for name, module in booster.named_modules():
        if isinstance(module, Expanded):
            break
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            booster.get_submodule(name)._parameters.update(network.get_submodule(name)._parameters)
            shared += 1
    return shared
