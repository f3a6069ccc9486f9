"""NetDistiller: the network learns from the widest of those that share its weights, in the same step.

Source: Zhang et al. 2023, arXiv:2310.19820, of which the abstract alone could be read: a teacher with more channels
that shares the network's weights, trained jointly; gradient surgery between the two; a distillation that knows of
uncertainty. Which divergence is taken when, whose gradient gives way and all numbers are ours: surgery after Yu et al.
2020, arXiv:2001.06782 (PCGrad), for one of the two tasks; divergences in ``divergences.py``.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from nbcompile.core.cost import cost
from nbcompile.training.batch import Batch
from nbcompile.training.methods.divergences import DIVERGENCES
from nbcompile.training.methods.netaug import Widened
from nbcompile.training.methods.passes import Passes
from nbcompile.wide.widths import WidthPart
from nbcompile.widening import at_width

if TYPE_CHECKING:
    from nbcompile.training.options.config import TrainConfig


class NetDistiller(Widened):
    """The widest learns from labels, the network from labels and from the widest.

    On the weights that both share, the part of the widest's gradient that is against the network's is taken away.
    """

    def __init__(self, config: "TrainConfig", steps_per_epoch: int, teacher: nn.Module | None = None) -> None:
        super().__init__(config, steps_per_epoch, teacher)
        self._divergence = DIVERGENCES[config.divergence]
        self._of_widest: dict[nn.Parameter, Tensor | None] = {}
        self._counts: Tensor | None = None  # of an epoch: steps, those in conflict, sum of the cosines

    def attach(self, model: nn.Module, epoch: int) -> None:
        """Counts anew how often the two are in conflict."""
        super().attach(model, epoch)
        if self._counts is not None:
            self._counts.zero_()  # a recorded step goes on adding to it

    def phase(self, epoch: int) -> str:
        """Always the same."""
        return "widest teaches"

    def learn(self, passes: Passes, batch: Batch) -> tuple[Tensor, Tensor]:
        """The gradients of the widest, kept apart; then the network's own."""
        own = {parameter: parameter.grad for parameter in passes.model.parameters()}
        for parameter in own:
            parameter.grad = self._of_widest.get(parameter)
        with at_width(passes.model, "widest"):
            _, answers = passes.learn(lambda: self.cross_entropy(passes.model, batch))
        self._of_widest = {parameter: parameter.grad for parameter in own}
        for parameter, gradient in own.items():
            parameter.grad = gradient

        def taught() -> tuple[Tensor, Tensor]:
            loss, logits = self.loss(passes.model, batch)
            c = self.config
            far = self.task.compared(self._divergence, logits, answers, c.temperature)
            return (1 - c.kd_weight) * loss + c.kd_weight * c.temperature**2 * far, logits

        return passes.learn(taught)

    @torch.no_grad()
    def before_step(self, model: nn.Module) -> None:
        """Take what is against the network's gradient from that of the widest, and add the two."""
        super().before_step(model)
        pairs = [(shared(p.grad), shared(g), p, g) for p, g, shared in self._gradients(model)]
        dot = torch.stack([(own * widest).sum() for own, widest, _, _ in pairs]).sum()
        norms = [torch.stack([x[i].square().sum() for x in pairs]).sum().sqrt() for i in (0, 1)]
        self._count(dot / (norms[0] * norms[1]).clamp_min(1e-30))
        against = (-dot).clamp_min(0) / norms[0].square().clamp_min(1e-30)
        for _, _, parameter, widest in pairs:
            if self.config.surgery == "widest":
                widest = widest + against * parameter.grad  # the network's is 0 where nothing is shared
            parameter.grad = parameter.grad + widest
        self._of_widest = {}

    def _gradients(self, model: nn.Module) -> Iterator[tuple[Any, Tensor, Any]]:
        """Parameters, the widest's gradients of them, and what takes the network's own part of such a gradient."""
        parts: dict[nn.Parameter, Any] = {}
        for module in model.modules():
            if isinstance(module, ParametrizationList) and isinstance(module[0], WidthPart):
                parts[cast(nn.Parameter, module.original)] = module[0]
        for parameter in model.parameters():
            widest = self._of_widest.get(parameter)
            if widest is not None and parameter.grad is not None:
                yield parameter, widest, parts.get(parameter, lambda x: x)
            elif widest is not None:
                parameter.grad = widest

    def measured(self) -> dict[str, float]:
        """Of the epoch's steps: the share in which the two were in conflict, and the mean cosine between them."""
        steps, conflicts, total = (0.0, 0.0, 0.0) if self._counts is None else self._counts.tolist()
        return super().measured() | ({"conflicts": conflicts / steps, "cosine": total / steps} if steps else {})

    def _count(self, cosine: Tensor) -> None:
        counted = torch.stack([torch.ones_like(cosine), (cosine < 0).to(cosine.dtype), cosine])
        if self._counts is None:
            self._counts = torch.zeros_like(counted)
        self._counts += counted

    def macs(self, model: nn.Module, example: Tensor) -> tuple[int, int]:
        """See `Method.macs`."""
        own, larger = super().macs(model, example)
        with at_width(model, "widest"):
            return own, larger + cost(model, example).macs
