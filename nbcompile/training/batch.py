"""What a training step gets."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ANSWERS, OTHER_VIEW = "answers", "other view"
"""In `Batch.more`: the teacher's answers, as logits ``(N, K)``; what the teacher sees in place of the images."""
MIXTURE = "mixture"
"""In `Batch.more`: shares of the classes in each image, ``(N, K)``, where images are mixed."""
UNLABELED = "unlabeled"
"""What ``Batch.more`` calls images without labels, ``(M, C, H, W)``."""


class Batch(NamedTuple):
    """Images, and what is known of them.

    Attributes:
        images: ``(N, C, H, W)``.
        labels: as the task has them: ``(N,)``, int64, of a mixture that of the larger share; of a detector
            ``(N, M, 5)``, float32.
        more: what a method asked for, by name; a tensor's first dimension is divided with the images.
    """

    images: Tensor
    labels: Tensor
    more: dict[str, Tensor] = {}  # noqa: RUF012  a field's default, which nobody changes

    @property
    def targets(self) -> Tensor:
        """What a network should answer: labels ``(N,)``, or shares of classes ``(N, K)``, where images are mixed."""
        return self.more.get(MIXTURE, self.labels)

    def split(self, sizes: list[int]) -> "Iterator[Batch]":
        """The batch in parts of so many images."""
        return self._cut(lambda x: torch.split(x, sizes))

    def parts(self, count: int) -> "Iterator[Batch]":
        """The batch in ``count`` equal parts."""
        return self._cut(lambda x: x.chunk(count))

    def _cut(self, cut: Callable[[Tensor], Sequence[Tensor]]) -> "Iterator[Batch]":
        more = {name: cut(x) for name, x in self.more.items()}
        for i, (images, labels) in enumerate(zip(cut(self.images), cut(self.labels), strict=True)):
            yield Batch(images, labels, {name: x[i] for name, x in more.items()})
