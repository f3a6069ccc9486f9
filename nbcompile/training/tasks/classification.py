"""One class an image: logits ``(N, K)``, labels ``(N,)``, int64."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from nbcompile.training.tasks.base import Far, Score, Sums, Task


class Classification(Task):
    """Cross entropy, and accuracy."""

    name = "classification"
    metric = "accuracy"
    fewest_classes = 2

    def __reduce__(self) -> str:
        return "CLASSIFICATION"  # the only one, in other processes, too

    def loss(self, outputs: Any, labels: Tensor, smoothing: float) -> Tensor:
        """Cross entropy against ``(1 - e) * one_hot + e / K``.

        Source: Szegedy et al. 2016, arXiv:1512.00567, sec. 7.
        """
        return F.cross_entropy(outputs, labels, label_smoothing=smoothing)

    def hits(self, outputs: Any, labels: Tensor) -> Tensor:
        """Images whose largest logit is that of their class."""
        hits: Tensor = (outputs.argmax(1) == labels).sum()
        return hits

    def compared(self, far: Far, outputs: Any, answers: Any, temperature: float) -> Tensor:
        """See `Task.compared`; a row is an image."""
        return far(outputs.float() / temperature, answers.float() / temperature)

    def distance(self, outputs: Any, answers: Any) -> Tensor:
        """Of logits."""
        distance: Tensor = (answers.float() - outputs.float()).square().sum(1).mean()
        return distance

    def score(self) -> Score:
        """Accuracy."""
        return _Accuracy()

    def misfit(self, outputs: Any, classes: int) -> str | None:
        """Not one logit a class."""
        if outputs.shape == (2, classes):
            return None
        return f"gives outputs of shape {tuple(outputs.shape[1:])}"


class _Accuracy(Score):
    def __init__(self) -> None:
        self._correct: Tensor | int = 0
        self._seen = 0

    def add(self, outputs: Any, labels: Tensor) -> None:
        self._correct = self._correct + (outputs.argmax(1) == labels).sum()  # fetched once, at the end
        self._seen += len(labels)

    def result(self, summed: Sums) -> float:
        correct, seen = summed(int(self._correct), self._seen)
        return correct / seen


CLASSIFICATION = Classification()
"""What is learnt where a data set says nothing."""
