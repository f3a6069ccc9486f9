"""What a teacher answers: asked again for every batch, or once for each view of the images, where views come again.

The student always learns the answer to the very view that it sees, as Beyer et al. 2022, arXiv:2106.05237, sec. 3,
ask for ("consistent"); views that come again are ours.
"""

import torch
from torch import Tensor, nn

from nbcompile.core.errors import UsageError


class Answers:
    """The teacher's logits, in the order of the batches.

    They stay on the device: images × classes × ``views`` numbers, shared out over the processes.

    Args:
        views: epoch ``e`` and epoch ``e + views`` show the same batches; None if no two epochs do.
    """

    def __init__(self, views: int | None) -> None:
        self._views = views
        self._known: dict[int, list[Tensor]] = {}
        self._first: dict[int, Tensor] = {}
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """The next batch is the first one of ``epoch``."""
        self._view = epoch if self._views is None else epoch % self._views
        self._batch = 0

    @torch.no_grad()
    def to(self, images: Tensor, teacher: nn.Module) -> Tensor:
        """Logits ``(N, K)`` of the next batch, ``images`` (N, C, H, W).

        Raises:
            UsageError: if the view is not the one that the teacher has seen.
        """
        if self._views is None:
            answers: Tensor = teacher(images)
            return answers
        if self._batch == 0:
            self._check(images)
        known = self._known.setdefault(self._view, [])
        if self._batch == len(known):
            known.append(teacher(images))
        self._batch += 1
        return known[self._batch - 1]

    def _check(self, images: Tensor) -> None:
        """One batch tells: augmentation that draws from generators of its own differs in all."""
        if not torch.equal(images, self._first.setdefault(self._view, images)):
            raise UsageError(
                f"teacher_views {self._views}: the data set showed other images when view {self._view + 1} came again, "
                f"since it draws from random generators of its own; leave teacher_views out"
            )
