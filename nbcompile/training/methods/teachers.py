"""Several teachers as one module."""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Ensemble(nn.Module):
    """Answers with the mean of its teachers' probabilities.

    At temperature T that is the mean of ``softmax(z / T)`` over their logits z; its answers are the logits whose own
    softmax at T is that mean.

    Source: MEAL V2 (Shen and Savvides 2020, arXiv:2009.08453, sec. 3), at T = 1; T is ours.

    Args:
        teachers: each gives logits ``(N, K)``.
        temperature: T.
    """

    def __init__(self, teachers: nn.ModuleList, temperature: float) -> None:
        super().__init__()
        self.teachers, self.temperature = teachers, temperature

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)``, float32."""
        softened = [F.log_softmax(teacher(images).float() / self.temperature, dim=1) for teacher in self.teachers]
        mean = torch.stack(softened).logsumexp(0) - math.log(len(softened))
        return self.temperature * mean


class Anchors(nn.Module):
    """The networks of a teacher's route, of which one answers at a time.

    Args:
        route: in the order in which they were trained.
    """

    def __init__(self, route: nn.ModuleList) -> None:
        super().__init__()
        self.route, self._now = route, 0

    def __len__(self) -> int:
        return len(self.route)

    def turn_to(self, number: int) -> None:
        """From now on anchor ``number``, counted from 0, answers."""
        self._now = number

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, K)`` of the anchor whose turn it is."""
        return cast(Tensor, self.route[self._now](images))


def averaged_over(teacher: nn.Module, temperature: float) -> nn.Module:
    """One teacher: the only one as it is, of several (a ``ModuleList``) the `Ensemble`."""
    return Ensemble(teacher, temperature) if isinstance(teacher, nn.ModuleList) else teacher
