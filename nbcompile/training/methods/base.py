"""What a training method may do differently; the loop does the rest."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from nbcompile.core.blocks import sites
from nbcompile.core.cost import cost
from nbcompile.results.layer_costs import original_of
from nbcompile.training.batch import Batch
from nbcompile.training.methods.groups import parameter_groups
from nbcompile.training.methods.passes import Passes
from nbcompile.training.tasks.base import Task
from nbcompile.training.tasks.classification import CLASSIFICATION

if TYPE_CHECKING:
    from nbcompile.training.options.config import TrainConfig


class Method:
    """One way to train a network: here as it is, the baseline of all others.

    The loop calls the methods below in the order in which they stand here.

    Args:
        config: of the run.
        steps_per_epoch: optimiser steps.
        teacher: for methods that distil; frozen, in eval mode.

    Attributes:
        average: of the weights of what was trained so far, when ``attach`` is called; None where there is none.
        task: what is learnt; the loop sets it.
    """

    average: nn.Module | None = None
    task: Task = CLASSIFICATION

    def __init__(self, config: "TrainConfig", steps_per_epoch: int, teacher: nn.Module | None = None) -> None:
        self.config, self.steps_per_epoch, self.teacher = config, steps_per_epoch, teacher

    def prepare(self, model: nn.Module) -> nn.Module:
        """The network that the run begins with.

        Args:
            model: a copy of the caller's, which may be changed; it remembers what it is trained on.
        """
        return model

    def advance(self, model: nn.Module, epoch: int) -> nn.Module:
        """The network that ``epoch`` trains, from the one before it: ``model`` itself, changed or not, or another one.

        What is done depends on ``epoch`` alone: a resumed run repeats it on weights that it then replaces. Once more
        for the same epoch changes nothing.

        Args:
            model: the network.
            epoch: counted from 0.
        """
        return model

    def attach(self, model: nn.Module, epoch: int) -> None:
        """``model`` is what ``epoch`` trains; called at the start of every epoch."""

    def phase(self, epoch: int) -> str:
        """What happens in ``epoch``, counted from 0, in a word; networks of one phase cost the same."""
        return "train"

    def learn(self, passes: Passes, batch: Batch) -> tuple[Tensor, Tensor]:
        """Add the gradients of a part of a batch; loss, times the part's share, and logits of the network itself."""
        return passes.learn(lambda: self.loss(passes.model, batch))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss (a scalar) and outputs of a batch: logits ``(N, K)``, or what else the task has."""
        return self.cross_entropy(model, batch)

    def cross_entropy(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of the task against the labels, in classification cross entropy; and the outputs."""
        logits = model(batch.images)
        return self.cross_entropy_of(logits, batch.targets), logits

    def cross_entropy_of(self, logits: Any, targets: Tensor) -> Tensor:
        """As :meth:`cross_entropy`, of outputs that are there; targets as of `Batch`."""
        return self.task.loss(logits, targets, self.config.label_smoothing)

    def before_step(self, model: nn.Module) -> None:
        """The gradients of a whole batch are there."""

    def after_step(self) -> None:
        """What follows every optimiser step."""

    def macs(self, model: nn.Module, example: Tensor) -> tuple[int, int]:
        """Multiply-accumulates of a training pass of one image: through the network, and through what is larger.

        Args:
            model: what the epoch trains.
            example: an image, ``(1, C, H, W)``.
        """
        network = original_of(model)
        own, trained = cost(network, example).macs, cost(model, example).macs
        if all(block.collapsed for block in sites(model).values()):  # it costs what the layer does which it is
            trained = own
        return (0, trained) if trained > own else (trained, 0)

    def asked(self, example: Tensor) -> int:
        """Multiply-accumulates of the teacher's answers for one labelled image.

        Args:
            example: an image, ``(1, C, H, W)``.
        """
        return 0 if self.teacher is None else cost(self.teacher, example).macs

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """For the optimiser; a group's ``lr_scale`` multiplies its learning rate."""
        return parameter_groups(model, self.config.weight_decay)

    @property
    def slope(self) -> float | None:
        """Of the inserted activations; None where there are none."""
        return None

    def measured(self) -> dict[str, float]:
        """What the method found out in an epoch, by name; it stands in that epoch's metrics."""
        return {}

    def kept(self, model: nn.Module) -> nn.Module:
        """What of the trained ``model`` is measured and saved."""
        return model

    def fused(self, model: nn.Module) -> nn.Module | None:
        """What will be deployed in place of the trained ``model``; None where that is the model itself."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know of the method, beyond the weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
