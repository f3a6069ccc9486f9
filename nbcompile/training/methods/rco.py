"""Route-constrained distillation: the network learns from the networks that its teacher was while it was trained.

Source: Jin et al. 2019, arXiv:1904.09149, of which the abstract alone could be read: anchor points, selected from the
route in parameter space that the teacher passed by, supervise the student one after the other. That they lie at equal
distances, that each has an equal part of the run, and one schedule of the learning rate without restarts, are ours.
"""

from typing import TYPE_CHECKING

from torch import nn

from nbcompile.core.errors import UsageError
from nbcompile.training.methods.distillation import Distilled
from nbcompile.training.methods.teachers import Anchors

if TYPE_CHECKING:
    from nbcompile.training.options.config import TrainConfig


class RouteDistilled(Distilled):
    """Put before a method, as `Distilled`: the teacher changes from anchor to anchor.

    Raises:
        UsageError: if there is one anchor alone, or there are more than epochs.
    """

    def __init__(self, config: "TrainConfig", steps_per_epoch: int, teacher: nn.Module | None = None) -> None:
        if not isinstance(teacher, nn.ModuleList):
            raise UsageError(
                "method 'rco' needs the anchors of a teacher's route in order, two or more files: train the teacher "
                "with keep_anchors and name its run folder"
            )
        if len(teacher) > config.epochs:
            raise UsageError(f"rco: {len(teacher)} anchors are more than the {config.epochs} epochs: each needs one")
        self._anchors = Anchors(teacher)
        super().__init__(config, steps_per_epoch, self._anchors)

    def attach(self, model: nn.Module, epoch: int) -> None:
        """The anchor of the epoch answers."""
        super().attach(model, epoch)
        self._anchors.turn_to(self._number(epoch))

    def phase(self, epoch: int) -> str:
        """The number of the anchor, counted from 1."""
        return f"anchor {self._number(epoch) + 1}"

    def _number(self, epoch: int) -> int:
        return epoch * len(self._anchors) // self.config.epochs
