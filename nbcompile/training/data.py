"""What every data set looks like to the loop, and in which order its batches come.

The order of an epoch is a function of (seed, epoch) alone, and all other randomness of the epoch one of (seed,
epoch, process): a resumed run has no generator to restore.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from nbcompile.core.errors import UsageError
from nbcompile.training.config import TrainConfig

Batch = tuple[Tensor, Tensor]

KINDS = "digits, cifar10:DIR, imagefolder:DIR, torchvision:NAME?root=DIR or package.module:factory"


class Images(Protocol):
    """A set of labelled images that is read a batch at a time."""

    @property
    def labels(self) -> Tensor:
        """Labels ``(N,)`` of all images, int64, without augmentation; it may take a pass over them."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, indices: list[int]) -> Batch | UsageError:
        """Images ``(N, C, H, W)`` and labels ``(N,)``; a UsageError *returned* if one cannot be read.

        Returned and not raised, because a worker process would bury its sentence in its own traceback.
        """


@dataclass(frozen=True)
class Data:
    """A data set, ready to train on.

    Attributes:
        name: as the user wrote it.
        train: augmented.
        val: as it is; accuracy is measured here.
        classes: names, in the order of the labels.
        shape: ``(C, H, W)`` of one image.
        preprocessing: how raw images become inputs; kept in the trained file.
    """

    name: str
    train: Images
    val: Images
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    preprocessing: dict[str, Any] = field(default_factory=dict)


def load_data(config: TrainConfig, default_size: int | None = None) -> Data:
    """The data set that ``config.data`` names.

    Args:
        config: also gives ``input_size``, ``train_images`` and ``skip_broken``.
        default_size: side of the model's input, in pixels, if known; sets whose images differ in size need one of
            the two.

    Raises:
        UsageError: if there is no such data set, or it is not usable.
    """
    data = _loaded(config, default_size)
    if len(data.classes) < 2:
        named = f", '{data.classes[0]}'" if data.classes else ""
        raise UsageError(f"{data.name} has {len(data.classes)} class{named}: training needs at least two")
    for part, images in (("train on", data.train), ("measure on", data.val)):
        if len(images) == 0:
            raise UsageError(f"{data.name} has no images to {part}")
    if config.train_images is None:
        return data
    from nbcompile.training.choosing import chosen

    return replace(data, train=chosen(data, config.train_images))


def _loaded(config: TrainConfig, default_size: int | None) -> Data:
    """The data set of the kind before the first colon; kinds are imported when they are asked for."""
    kind, _, rest = config.data.partition(":")
    side, skip = config.input_size or default_size, config.skip_broken
    if kind == "digits" and not rest:
        from nbcompile.training.digits import load_digits

        return load_digits(config.input_size)
    if kind == "cifar10" and rest:
        from nbcompile.training.cifar10 import load_cifar10

        return load_cifar10(rest, config.input_size, skip)
    if kind == "imagefolder" and rest:
        from nbcompile.training.imagefolder import load_imagefolder

        return load_imagefolder(rest, side, skip)
    if kind == "torchvision" and rest:
        from nbcompile.training.torchvision_data import load_torchvision

        return load_torchvision(config.data, config.input_size, default_size, skip)
    if rest.partition("?")[0].isidentifier():
        from nbcompile.training.factory_data import load_factory

        return load_factory(config.data, config.input_size)
    raise UsageError(f"data must be {KINDS}, not '{config.data}'")


def derived_seed(*parts: int) -> int:
    """A 32-bit seed that is a function of ``parts``, such as (seed, epoch, rank)."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def seed_everything(*parts: int) -> None:
    """Seed the generators of python, numpy and torch (all devices) with a function of ``parts``."""
    seed = derived_seed(*parts)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


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


class Loader:
    """Batches of one set, on one process.

    Args:
        images: the set.
        order: which images make up which batch.
        num_workers: processes that read.
        place: moves a batch to its device.
    """

    def __init__(self, images: Images, order: BatchOrder, num_workers: int, place: Callable[[Batch], Batch]) -> None:
        self.order, self._place = order, place
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
            yield self._place(batch)
