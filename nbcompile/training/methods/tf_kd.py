"""Distillation without a teacher: labels that are softened by a temperature stand in for one.

Source: Yuan et al. 2020, arXiv:1909.11723, sec. 5.2 (Tf-KD with regularization): a virtual teacher gives the right
class a high probability and all others the same, and is softened by T. The released code pushes these probabilities,
not their logarithms, through the softmax (at T = 20 every class gets the same), and averages over classes, too; here
the virtual teacher's logits are the logarithms, and the divergence is the one of ``distillation.py``, summed over
classes.

The paper's other form (Tf-KD by self-training) is method ``kd`` with the network itself, trained before, as teacher.
"""

import math

import torch
from torch import Tensor, nn

from nbcompile.training.batch import Batch
from nbcompile.training.methods.base import Method
from nbcompile.training.methods.distillation import divergence


def virtual_answers(labels: Tensor, classes: int, correct: float) -> Tensor:
    """Logits ``(N, K)`` of a teacher that gives ``correct`` to the label, and the rest evenly to all other classes.

    Args:
        labels: ``(N,)``.
        classes: K, at least 2.
        correct: a probability, in (0, 1).
    """
    answers = torch.full((len(labels), classes), math.log((1 - correct) / (classes - 1)), device=labels.device)
    return answers.scatter_(1, labels[:, None], math.log(correct))


class TeacherFree(Method):
    """Trains the network as it is; ``kd_weight`` of the loss is the divergence from the virtual teacher."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Method.loss`."""
        c = self.config
        loss, logits = super().loss(model, batch)
        answers = virtual_answers(batch.labels, logits.shape[1], c.virtual_correct)
        return (1 - c.kd_weight) * loss + c.kd_weight * divergence(logits, answers, c.virtual_temperature), logits
