"""What a teacher answers to every training image, asked once, before the run.

The student sees the image augmented, the teacher does not: cheaper than asking again for every batch, and less exact.
Source: Beyer et al. 2022, arXiv:2106.05237, sec. 3.1 ("fixed teacher").
"""

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nbcompile.training.loader import BatchOrder, Loader

if TYPE_CHECKING:
    from lightning.fabric import Fabric


class Answers:
    """The teacher's logits, in the order in which the batches of this process come.

    Args:
        logits: ``(N, K)``, of every training image.
        order: of the batches.
    """

    def __init__(self, logits: Tensor, order: BatchOrder) -> None:
        self._logits, self._order = logits, copy.copy(order)
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """The next batch is the first one of ``epoch``."""
        self._order.epoch = epoch
        self._coming = torch.tensor([index for batch in self._order for index in batch])

    def next(self, count: int) -> Tensor:
        """Logits ``(count, K)`` of the next ``count`` images."""
        indices, self._coming = self._coming[:count], self._coming[count:]
        return self._logits[indices.to(self._logits.device)]


@torch.no_grad()
def answered(fabric: "Fabric", teacher: nn.Module, batches: Loader, classes: int) -> Tensor:
    """Logits ``(N, classes)`` of all images, the same on all processes, each of which asks for its share.

    Args:
        fabric: the engine.
        teacher: in eval mode, on the device.
        batches: this process's share of the images, in their order.
        classes: logits per image.
    """
    logits = torch.zeros(batches.order.length, classes, device=fabric.device)
    for indices, (images, _) in zip(batches.order, batches.epoch(0), strict=True):
        with fabric.autocast():
            logits[indices] = teacher(images).float()
    if fabric.world_size > 1:
        torch.distributed.all_reduce(logits)
    return logits
