"""What a training step gets."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Images, and what is known of them.

    Attributes:
        images: ``(N, C, H, W)``.
        labels: as the task has them: ``(N,)``, int64; of a detector ``(N, M, 5)``, float32.
        more: what a method asked for, by name; a tensor's first dimension is divided with the images.
    """

    images: Tensor
    labels: Tensor
    more: dict[str, Tensor] = {}  # noqa: RUF012  a field's default, which nobody changes

    def parts(self, count: int) -> "Iterator[Batch]":
        """The batch in ``count`` equal parts."""
        more = {name: x.chunk(count) for name, x in self.more.items()}
        pairs = zip(self.images.chunk(count), self.labels.chunk(count), strict=True)
        for i, (images, labels) in enumerate(pairs):
            yield Batch(images, labels, {name: x[i] for name, x in more.items()})
