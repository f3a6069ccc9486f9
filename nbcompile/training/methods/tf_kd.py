"""Distillation without a teacher: labels that are softened by a temperature stand in for one.

Source: Yuan et al. 2020, arXiv:1909.11723, sec. 5.2 (Tf-KD with regularization): a virtual teacher gives the right
class a high probability and all others the same, and is softened by T. The released code pushes these probabilities,
not their logarithms, through the softmax (at T = 20 every class gets the same), and averages over classes, too; here
the virtual teacher's logits are the logarithms, and the divergence is the one of ``distillation.py``, summed over
classes. The defaults are their numbers for ImageNet, T = 20 and a weight of 0.1; of an average over classes a weight
counts less than of a sum.

The paper's other form (Tf-KD by self-training) is method ``kd`` with the network itself, trained before, as teacher.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from nbcompile.training.batch import MIXTURE, Batch
from nbcompile.training.methods.base import Method
from nbcompile.training.methods.distillation import divergence


def virtual_answers(shares: Tensor, correct: float) -> Tensor:
    """Logits ``(N, K)`` of a teacher that gives ``correct`` to the right class, and the rest evenly to all others.

    Args:
        shares: of the classes in each image, ``(N, K)``: one is 1, unless images are mixed.
        correct: a probability, in (0, 1).
    """
    others = (1 - correct) / (shares.shape[1] - 1)
    return (others + (correct - others) * shares).log()


class TeacherFree(Method):
    """Trains the network as it is; ``virtual_weight`` of the loss is the divergence from the virtual teacher."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Method.loss`."""
        c = self.config
        loss, logits = super().loss(model, batch)
        right = batch.targets if MIXTURE in batch.more else F.one_hot(batch.labels, logits.shape[1])
        answers = virtual_answers(right.float(), c.virtual_correct)
        soft = divergence(logits, answers, c.virtual_temperature)
        return (1 - c.virtual_weight) * loss + c.virtual_weight * soft, logits
