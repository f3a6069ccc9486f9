"""Knowledge distillation: the network also learns what a teacher answers; beside any other method.

Source: Hinton et al. 2015, arXiv:1503.02531, eq. 1, in the form of Tian et al. 2020, arXiv:1910.10699 (RepDistiller):
the divergence is summed over classes and averaged over the batch. A giant that teaches its own linearisation is ours.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbcompile.core.copies import copied
from nbcompile.training.batch import Batch
from nbcompile.training.methods import SELF
from nbcompile.training.methods.base import Method


def divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T² KL(softmax(teacher / T) || softmax(logits / T))``, mean over the batch, in nats.

    Args:
        logits: ``(N, K)``.
        teacher: ``(N, K)``.
        temperature: T; the factor T² keeps the gradient's size.
    """
    return temperature**2 * kl_divergence(logits.float() / temperature, teacher.float() / temperature)


def kl_divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """``KL(softmax(teacher) || softmax(logits))``, mean over the batch, in nats."""
    student, target = (F.log_softmax(x, dim=1) for x in (logits, teacher))
    return F.kl_div(student, target, reduction="batchmean", log_target=True)


class Distilled(Method):
    """Put before a method: its loss becomes ``(1 - w)`` times its own and ``w`` times the divergence from the teacher.

    The teacher is the same in all phases; or it is the giant itself, while its slopes rise and after.
    """

    def attach(self, model: nn.Module, epoch: int) -> None:
        """At the start of the decay a copy of the giant becomes its own teacher."""
        if self.config.teacher == SELF and epoch == self.config.phases.decay:
            self.teacher = copied(model, training=False).requires_grad_(False)
        super().attach(model, epoch)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Method.loss`; where there is no teacher yet, the method's own."""
        loss, logits = super().loss(model, batch)
        if self.teacher is None:
            return loss, logits
        with torch.no_grad():
            answers = self.teacher(batch.images)
        weight, temperature = self.config.kd_weight, self.config.temperature
        far = temperature**2 * self.task.compared(kl_divergence, logits, answers, temperature)
        return (1 - weight) * loss + weight * far, logits

    def state_dict(self) -> dict[str, Any]:
        """The weights of the giant that teaches itself; a foreign teacher is read again."""
        if self.teacher is None or self.config.teacher != SELF:
            return super().state_dict()
        return super().state_dict() | {"teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        super().load_state_dict(state)
        if self.teacher is not None and "teacher" in state:
            self.teacher.load_state_dict(state["teacher"])
