"""Accuracy, and sums over processes."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from nbcompile.training.loader import Loader

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@torch.no_grad()
def accuracy(fabric: "Fabric", model: nn.Module, batches: Loader) -> float:
    """Share of the images that ``model`` names rightly, in [0, 1]; each image counts once, on one process.

    Args:
        fabric: the engine.
        model: the bare network; put into eval mode. Not as Fabric wraps it: processes may have different
            numbers of batches, and DDP's forward waits for all of them.
        batches: this process's share of the images.
    """
    model.eval()
    if fabric.world_size > 1:  # batch norm's statistics differ by one step between processes
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
    correct, seen = torch.zeros((), dtype=torch.int64, device=fabric.device), 0
    for images, labels, _ in batches.epoch(0):
        correct += (model(images).argmax(1) == labels).sum()  # fetched once, at the end
        seen += len(labels)
    correct_everywhere, seen_everywhere = summed(fabric, int(correct), seen)
    return correct_everywhere / seen_everywhere


def summed(fabric: "Fabric", *values: float) -> list[float]:
    """Each value, summed over all processes."""
    if fabric.world_size == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=fabric.device)
    torch.distributed.all_reduce(total)
    return [float(value) for value in total]


def averaged(fabric: "Fabric", *values: float) -> list[float]:
    """Each value, averaged over all processes."""
    return [total / fabric.world_size for total in summed(fabric, *values)]
