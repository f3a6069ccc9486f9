"""The passes of a training step: how a method gets its gradients."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(frozen=True)
class Passes:
    """What a method needs to run a part of a batch through the network, once or several times.

    Attributes:
        fabric: the engine.
        model: as the engine wraps it.
        share: of the part in the batch: gradients are multiplied by it.
        last: whether it is the batch's last part; before, processes do not exchange gradients.
    """

    fabric: "Fabric"
    model: Any
    share: float
    last: bool

    def learn(self, loss: Callable[[], tuple[Tensor, Tensor]], *, more: bool = False) -> tuple[Tensor, Tensor]:
        """Add the gradients of a loss.

        Args:
            loss: computes it, and logits (or what else the task has), with ``model``.
            more: whether another pass of the same part follows, whose gradients are added to these.

        Returns:
            The loss, a scalar, times the part's share; the logits.
        """
        with self.fabric.no_backward_sync(self.model, enabled=more or not self.last):
            with self.fabric.autocast():
                value, logits = loss()
            self.fabric.backward(value * self.share)
        return value.detach() * self.share, tree_map(Tensor.detach, logits)

    def averaged(self, *values: float) -> list[float]:
        """Each value, averaged over all processes."""
        if self.fabric.world_size == 1:
            return list(values)
        mine = torch.tensor(values, dtype=torch.float64, device=self.fabric.device)
        return [float(value) for value in self.fabric.all_reduce(mine, reduce_op="mean")]
