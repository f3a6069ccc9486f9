"""Knowledge distillation: the network also learns what a teacher answers; beside any other method.

Source: Hinton et al. 2015, arXiv:1503.02531, eq. 1, in the form of Tian et al. 2020, arXiv:1910.10699 (RepDistiller):
the divergence is summed over classes and averaged over the batch. Mixtures of images with the teacher's answers as
their only labels: Beyer et al. 2022, arXiv:2106.05237, sec. 2. A giant that teaches its own linearisation is ours.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Beta

from nbcompile.core.copies import copied
from nbcompile.training.batch import ANSWERS, OTHER_VIEW, Batch
from nbcompile.training.methods import SELF
from nbcompile.training.methods.base import Method
from nbcompile.training.methods.teachers import averaged_over

if TYPE_CHECKING:
    from nbcompile.training.options.config import TrainConfig


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


def mixtures(batch: Batch, alpha: float) -> Batch:
    """Each image mixed with another one of the batch, whose share is at most half.

    Args:
        batch: its labels stay: they say what the larger part shows.
        alpha: of ``Beta(alpha, alpha)``, from which the share is drawn, one for the batch.
    """
    share = float(Beta(alpha, alpha).sample())
    share = max(share, 1 - share)
    other = torch.randperm(len(batch.images)).to(batch.images.device)
    return batch._replace(images=share * batch.images + (1 - share) * batch.images[other])


class Distilled(Method):
    """Put before a method: its loss becomes ``(1 - w)`` times its own and ``w`` times the divergence from the teacher.

    The teacher is the same in all phases; or it is the giant itself, while its slopes rise and after: the average of
    its weights, where there is one. Where a batch brings answers, no teacher is asked. Several teachers are averaged.
    """

    def __init__(self, config: "TrainConfig", steps_per_epoch: int, teacher: nn.Module | None = None) -> None:
        super().__init__(
            config, steps_per_epoch, None if teacher is None else averaged_over(teacher, config.temperature)
        )

    def attach(self, model: nn.Module, epoch: int) -> None:
        """At the start of the decay a copy of the giant becomes its own teacher."""
        if self.config.teacher == SELF and epoch == self.config.phases.decay:
            giant = model if self.average is None else self.average
            self.teacher = copied(giant, training=False).requires_grad_(False)
        super().attach(model, epoch)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Method.loss`; where there is no teacher yet, the method's own."""
        c = self.config
        if c.kd_mixup:
            batch = mixtures(batch, c.kd_mixup)
        loss, logits = super().loss(model, batch)
        answers = self._answers(batch)
        if answers is None:
            return loss, logits
        far = c.temperature**2 * self.task.compared(kl_divergence, logits, answers, c.temperature)
        return (far if c.labels == "none" else (1 - c.kd_weight) * loss + c.kd_weight * far), logits

    @torch.no_grad()
    def _answers(self, batch: Batch) -> Any:
        """The teacher's outputs, those that the batch brings first; None where there is no teacher yet."""
        if ANSWERS in batch.more:
            return batch.more[ANSWERS]
        if self.teacher is None:
            return None
        return self.teacher(batch.more.get(OTHER_VIEW, batch.images))

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
