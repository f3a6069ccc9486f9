"""What a task says; the loop, the methods and the measuring ask it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

Far = Callable[[Tensor, Tensor], Tensor]
"""How far logits ``(M, K)`` are from a teacher's, as one number, the mean over the rows."""

Sums = Callable[..., list[float]]
"""Each number, summed over all processes."""


class Score(ABC):
    """Collects what a network answers on held-out images, on one process."""

    @abstractmethod
    def add(self, outputs: Any, labels: Tensor) -> None:
        """What it answers on a batch, and what is right."""

    @abstractmethod
    def result(self, summed: Sums) -> float:
        """The task's metric over all processes, in [0, 1]."""


class Task(ABC):
    """One kind of thing to learn.

    Outputs are what the network gives: logits ``(N, K)``, or maps.

    Attributes:
        name: what ``--task`` calls it.
        metric: what is measured on held-out images, in a word.
        fewest_classes: that there is anything to learn from.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    fewest_classes: ClassVar[int]

    @abstractmethod
    def loss(self, outputs: Any, labels: Tensor, smoothing: float) -> Tensor:
        """The loss of a batch, a scalar: a mean over its images, so that parts of a batch add up.

        Args:
            outputs: of the network.
            labels: of the data set.
            smoothing: share of a class's target that is spread over all classes.
        """

    @abstractmethod
    def hits(self, outputs: Any, labels: Tensor) -> Tensor:
        """How many images of a batch are right, a scalar; in part, where an image may be."""

    @abstractmethod
    def compared(self, far: Far, outputs: Any, answers: Any, temperature: float) -> Tensor:
        """How far ``outputs`` are from a teacher's ``answers``, softened by ``temperature``; a mean over images."""

    @abstractmethod
    def distance(self, outputs: Any, answers: Any) -> Tensor:
        """The squared distance of ``outputs`` from ``answers``; a mean over images."""

    @abstractmethod
    def score(self) -> Score:
        """What measures the metric of one network, from nothing."""

    @abstractmethod
    def misfit(self, outputs: Any, classes: int) -> str | None:
        """What is wrong with what a network gives for two images in training; None where it fits."""
