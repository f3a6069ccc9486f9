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


MADE_AT_ONCE = 8
"""Batches that are made together on an accelerator, for which a batch of small images is too little work."""


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


def held_on(images: "Images") -> torch.device | None:
    """Where ``images`` are held and their views are made, if they were moved there; they take indices from there."""
    device: torch.device | None = getattr(images, "device", None)
    return device


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

    Images that are held on a device are made there, by this process.
    """

    def __init__(self, images: "Images", order: BatchOrder, num_workers: int, place: "Place") -> None:
        self.order, self.place, self._images = order, place, images
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
        if held_on(self._images) is not None:
            yield from self._made_there()
            return
        # Workers are seeded from this generator; kept workers would carry their state from epoch to epoch.
        self._generator.manual_seed(derived_seed(self.order.seed or 0, epoch, self.order.rank))
        for batch in self._loader:
            if isinstance(batch, UsageError):
                raise batch
            yield self.place(Batch(*batch))

    def _made_there(self) -> Iterator[Batch]:
        """The order is sent to the device at once: each batch by itself would wait until the one before is done."""
        orders: list[Any] = list(self.order)
        device = held_on(self._images)
        sent = torch.tensor([index for order in orders for index in order], device=device)
        once = 1 if device is None or device.type == "cpu" else MADE_AT_ONCE
        sizes = [[*map(len, orders[start : start + once])] for start in range(0, len(orders), once)]
        for indices, parts in zip(torch.split(sent, [*map(sum, sizes)]), sizes, strict=True):
            batch: Any = self._images[indices]
            if isinstance(batch, UsageError):
                raise batch
            for part in Batch(*batch).split(parts):
                yield self.place(part)
