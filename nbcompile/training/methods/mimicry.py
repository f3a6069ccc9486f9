"""Mimicry: the network learns from few labels, and from what a giant answers on these and on images without labels.

Source: Tang et al. 2019, arXiv:1907.06065, of which the abstract alone could be read: a small network mimics a giant on
cheap images without labels, and an adversarial loss aligns low-level features of the two sets, which are biased against
each other. Losses, discriminator, feature and weights are ours: the divergence is that of ``distillation.py``, the
adversary that of ``adversary.py``.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nbcompile.core.cost import cost
from nbcompile.core.example import inputs_for, origin_of, remember
from nbcompile.core.random_state import forked_rng
from nbcompile.training.batch import UNLABELED, Batch
from nbcompile.training.methods.adversary import Adversary, risen, telling_apart
from nbcompile.training.methods.base import Method
from nbcompile.training.methods.distillation import divergence
from nbcompile.training.methods.features import low_level_feature, named_feature
from nbcompile.training.methods.passes import Passes

if TYPE_CHECKING:
    from nbcompile.training.options.config import TrainConfig

Outputs = tuple[Tensor, Tensor | None]
"""The network's logits, and the discriminator's."""


class Mimic(Method):
    """Put before a method: beside its labels' loss, the divergence from a giant on labelled and unlabelled images."""

    def __init__(self, config: "TrainConfig", steps_per_epoch: int, teacher: nn.Module | None = None) -> None:
        super().__init__(config, steps_per_epoch, teacher)
        self._adversary: Adversary | None = None
        self._step = 0
        self._right: list[Tensor] = []

    def prepare(self, model: nn.Module) -> nn.Module:
        """The network; with its adversary beside it, if there is to be one.

        Raises:
            UsageError: if it has no such feature.
        """
        model = super().prepare(model)
        if not self.config.adversarial:
            return model
        (image,) = inputs_for(model, None, who="train")
        name = self.config.feature
        feature = low_level_feature(model, image) if name is None else named_feature(model, image, name)
        with forked_rng():
            torch.manual_seed(self.config.seed)
            adversary = Adversary(model, feature)
        adversary.train(model.training)
        remember(adversary, origin_of(model))
        return adversary

    def attach(self, model: nn.Module, epoch: int) -> None:
        """From now on the adversary of ``model`` is the one whose weight rises; what it tells is counted anew."""
        super().attach(model, epoch)
        self._adversary = model if isinstance(model, Adversary) else None
        self._step, self._right = epoch * self.steps_per_epoch, []
        self._weigh()

    def phase(self, epoch: int) -> str:
        """The method's own; and the feature that is aligned."""
        own = super().phase(epoch)
        return own if self._adversary is None else f"{own}, aligned at {self._adversary.feature.name}"

    def learn(self, passes: Passes, batch: Batch) -> tuple[Tensor, Tensor]:
        """The gradients of both sets; their loss, and the logits of the labelled one.

        In a pass of its own, the set without labels leaves no statistics in norms.
        """
        if self.config.unlabeled_pass == "together":
            return super().learn(passes, batch)
        model, others = passes.model, batch.more[UNLABELED]
        loss, logits = passes.learn(lambda: self._labelled(_outputs(model, batch.images), batch), more=True)
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        more, _ = passes.learn(lambda: self._unlabeled(_outputs(model, others), batch))
        for buffer, before in buffers:
            buffer.copy_(before)
        return loss + more, logits

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of both sets, in one pass; and the logits of the labelled one."""
        count = len(batch.images)
        logits, told = _outputs(model, torch.cat([batch.images, batch.more[UNLABELED]]))
        loss, own = self._labelled((logits[:count], None if told is None else told[:count]), batch)
        more, _ = self._unlabeled((logits[count:], None if told is None else told[count:]), batch)
        return loss + more, own

    def _labelled(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss of the labelled images, and their logits."""
        own = self.cross_entropy_of(outputs[0], batch.labels)
        return own + self._mimicked(outputs, batch.images, batch, labelled=True), outputs[0]

    def _unlabeled(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss of the images without labels, and their logits."""
        return self._mimicked(outputs, batch.more[UNLABELED], batch, labelled=False), outputs[0]

    def _mimicked(self, outputs: Outputs, images: Tensor, batch: Batch, *, labelled: bool) -> Tensor:
        """What one set adds to the mean divergence over both, and to the adversary's loss."""
        assert self.teacher is not None
        logits, told = outputs
        with torch.no_grad():
            answers = self.teacher(images)
        share = len(images) / (len(batch.images) + len(batch.more[UNLABELED]))
        loss = self.config.mimic_weight * share * divergence(logits, answers, self.config.temperature)
        if told is None:
            return loss
        self._right.append(((told.detach() > 0) == labelled).float().mean())
        return loss + telling_apart(told, labelled=labelled)

    def after_step(self) -> None:
        """The adversary's weight rises."""
        super().after_step()
        self._step += 1
        self._weigh()

    def _weigh(self) -> None:
        if self._adversary is not None:
            progress = self._step / (self.config.epochs * self.steps_per_epoch)
            self._adversary.weight.fill_(self.config.adversarial * risen(progress))

    def measured(self) -> dict[str, float]:
        """In which share of an epoch's places the discriminator told the sets apart; 0.5 is by chance."""
        if not self._right:
            return super().measured()
        return super().measured() | {"told_apart": float(torch.stack(self._right).mean())}

    def kept(self, model: nn.Module) -> nn.Module:
        """The network."""
        return super().kept(model.bare() if isinstance(model, Adversary) else model)

    def macs(self, model: nn.Module, example: Tensor) -> tuple[int, int]:
        """See `Method.macs`: of a labelled image, and the images without labels that come with it."""
        discriminator = 0
        if isinstance(model, Adversary):
            discriminator = cost(model.discriminator, torch.zeros(model.feature.shape)).macs
            model = model.network
        own, larger = super().macs(model, example)
        images = 1 + self.config.unlabeled_share
        return round(images * (own + discriminator)), round(images * larger)

    def asked(self, example: Tensor) -> int:
        """See `Method.asked`: likewise."""
        return round((1 + self.config.unlabeled_share) * super().asked(example))


def _outputs(model: nn.Module, images: Tensor) -> Outputs:
    """Logits of the network, and of the discriminator beside it, if there is one."""
    found = model(images)
    return found if isinstance(found, tuple) else (found, None)
