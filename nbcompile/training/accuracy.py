"""What is measured on held-out images (accuracy, AP50), and sums over processes."""

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from nbcompile.training.loader import Loader
from nbcompile.training.tasks.base import Task
from nbcompile.training.tasks.classification import CLASSIFICATION

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@torch.no_grad()
def accuracy(fabric: "Fabric", model: nn.Module, batches: Loader, task: Task = CLASSIFICATION) -> float:
    """The metric of ``task``, in [0, 1]: share of the images that ``model`` names rightly, or AP50.

    Each image counts once, on one process.

    Args:
        fabric: the engine.
        model: the bare network; put into eval mode. Not as Fabric wraps it: processes may have different
            numbers of batches, and DDP's forward waits for all of them.
        batches: this process's share of the images.
        task: what it does.
    """
    model.eval()
    if fabric.world_size > 1:  # batch norm's statistics differ by one step between processes
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
    score = task.score()
    for images, labels, _ in batches.epoch(0):
        score.add(model(images), labels)
    return score.result(partial(summed, fabric))


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
