"""Batches of a second set, beside those of the one that is trained on."""

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from nbcompile.core.errors import UsageError
from nbcompile.training.batch import UNLABELED, Batch
from nbcompile.training.data.base import Data
from nbcompile.training.data.load import hold_images_on
from nbcompile.training.data.unlabeled.load_unlabeled import load_unlabeled
from nbcompile.training.loader import Batches, BatchOrder, Loader
from nbcompile.training.options.config import TrainConfig
from nbcompile.training.seeds import derived_seed

if TYPE_CHECKING:
    from lightning.fabric import Fabric

STREAM = 1
"""Added to the seed of a run: the two sets are shuffled and augmented apart."""


class Endless(BatchOrder):
    """Whole batches without end: one pass over the set after another, each shuffled anew.

    A batch may reach from one pass into the next, so that every image comes as often as any other.

    Args:
        length: images in the set.
        batch_size: images per batch, summed over all processes; may be more than there are.
        steps: batches of an epoch.
        seed: of the shuffling; what an epoch gives follows from it and the epoch alone.
        rank: of this process.
        world: number of processes.
    """

    def __init__(self, length: int, batch_size: int, steps: int, *, seed: int, rank: int = 0, world: int = 1) -> None:
        super().__init__(length, batch_size, seed=seed, rank=rank, world=world)
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        order = lru_cache(maxsize=2)(self._order)  # of the pass that ends, and the one that begins
        for step in range(self.epoch * self.steps, (self.epoch + 1) * self.steps):
            places = range(step * self.batch_size, (step + 1) * self.batch_size)[self.rank :: self.world]
            yield [order(place // self.length)[place % self.length] for place in places]

    def _order(self, number: int) -> list[int]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed or 0, number))
        return torch.randperm(self.length, generator=generator).tolist()


class Pairs:
    """Batches of one set, each with one of another.

    Args:
        loader: of the set that is trained on.
        beside: of the other, with as many batches.
        name: what ``Batch.more`` calls the other's images.
    """

    def __init__(self, loader: Batches, beside: Batches, name: str) -> None:
        self.loader, self.beside, self.name = loader, beside, name

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of epoch ``epoch``, counted from 0.

        Raises:
            UsageError: if an image cannot be read.
        """
        for batch, other in zip(self.loader.epoch(epoch), self.beside.epoch(epoch), strict=True):
            yield batch._replace(more=batch.more | {self.name: other.images})


def with_unlabeled(fabric: "Fabric", config: TrainConfig, data: Data, labelled: Loader) -> Pairs:
    """The batches of ``labelled``, each with its images without labels.

    Raises:
        UsageError: as `load_unlabeled`; if a batch of them cannot be divided among the processes.
    """
    size, world = config.unlabeled_batch or config.batch_size, fabric.world_size
    if size % (world * config.accumulate):
        parts = "" if config.accumulate == 1 else f", times accumulate {config.accumulate}"
        raise UsageError(f"unlabeled_batch {size} must be a multiple of {world}, the number of processes{parts}")
    images = load_unlabeled(config, data)
    if config.device_images:
        hold_images_on(images, f"unlabeled {config.unlabeled}", fabric.device)
    seed, rank = derived_seed(config.seed, STREAM), fabric.global_rank
    order = Endless(len(images), size, len(labelled), seed=seed, rank=rank, world=world)
    return Pairs(labelled, Loader(images, order, config.num_workers, labelled.place), UNLABELED)
