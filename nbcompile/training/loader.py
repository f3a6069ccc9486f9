"""In which order the batches of a data set come: a function of (seed, epoch) alone."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils.data import DataLoader, Sampler

from nbcompile.core.errors import UsageError
from nbcompile.training.batch import Batch
from nbcompile.training.seeds import derived_seed

if TYPE_CHECKING:
    from nbcompile.training.data.base import Images

    Place = Callable[[Batch], Batch]


class BatchOrder(Sampler[list[int]]):
    """Which images make up which batch, on one of ``world`` processes.

    Args:
        length: images in the set.
        batch_size: images per batch, summed over all processes.
        seed: of the shuffling; None keeps the order and the incomplete last batch (for measuring).
        rank: of this process.
        world: number of processes; together they see every image at most once.
    """

    def __init__(self, length: int, batch_size: int, *, seed: int | None, rank: int = 0, world: int = 1) -> None:
        self.length, self.batch_size, self.seed, self.rank, self.world = length, batch_size, seed, rank, world
        self.epoch = 0

    def __len__(self) -> int:
        full, rest = divmod(self.length, self.batch_size)
        # Training drops the incomplete batch: one image alone would break batch norm.
        return full if self.seed is not None else full + bool(rest)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self.length))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch))
            order = torch.randperm(self.length, generator=generator).tolist()
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            if mine := order[start : start + self.batch_size][self.rank :: self.world]:
                yield mine


class Batches(Protocol):
    """What a run is trained on, on one process."""

    def __len__(self) -> int:
        """Batches of an epoch."""

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of epoch ``epoch``, counted from 0."""


class Loader:
    """Batches of one set, on one process.

    Args:
        images: the set.
        order: which images make up which batch.
        num_workers: processes that read.
        place: moves a batch to its device.
    """

    def __init__(self, images: "Images", order: BatchOrder, num_workers: int, place: "Place") -> None:
        self.order, self.place = order, place
        self._generator = torch.Generator()
        self._loader: DataLoader[Any] = DataLoader(
            images,  # type: ignore[arg-type]  # a map of lists of indices, which DataLoader's types do not know
            sampler=order,
            batch_size=None,
            num_workers=num_workers,
            generator=self._generator,
        )

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of epoch ``epoch``, counted from 0.

        Raises:
            UsageError: if an image cannot be read.
        """
        self.order.epoch = epoch
        # Workers are seeded from this generator; kept workers would carry their state from epoch to epoch.
        self._generator.manual_seed(derived_seed(self.order.seed or 0, epoch, self.order.rank))
        for batch in self._loader:
            if isinstance(batch, UsageError):
                raise batch
            yield self.place(Batch(*batch))
