"""NetAug: train the network and, on the same batch, one that is wider and shares its weights.

Source: Cai et al. 2022, arXiv:2110.08890, sec. 3, and the released code: gradients are added with weight 1; in the
second half of the training only the widths within blocks are drawn; in the first the channels within blocks are sorted
at the start of every epoch. Running statistics that are kept apart, so that none are estimated anew, the index in place
of a sorted copy, and new inputs that start at 0 are ours.
"""

import random
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from nbcompile.core.blocks import sites
from nbcompile.core.cost import cost
from nbcompile.fusion import fuse
from nbcompile.training.batch import Batch
from nbcompile.training.methods.base import Method
from nbcompile.training.methods.passes import Passes
from nbcompile.wide.order import most_important_first_
from nbcompile.wide.widths import giant_in_width, widths_of
from nbcompile.widening import at_width, widen

if TYPE_CHECKING:
    from nbcompile.training.options.config import TrainConfig

DRAWN = 4
"""Widths that are drawn to estimate what a step costs."""


class Widened(Method):
    """Put before a method: what that trains is made a part of wider networks, and given back at the end.

    A network that the method itself expands is widened once it is.
    """

    def advance(self, model: nn.Module, epoch: int) -> nn.Module:
        """Widened, where it is not yet."""
        model = super().advance(model, epoch)
        if widths_of(model) is None and (sites(model) or not self.config.expands):
            c = self.config
            model = widen(model, factors=c.factors, inner=c.inner, seed=c.seed)
        return model

    def fused(self, model: nn.Module) -> nn.Module | None:
        """The original again."""
        return fuse(model) if widths_of(model) is not None else super().fused(model)


class NetAug(Widened):
    """One wider network a step, drawn anew; the same one in all processes."""

    def __init__(self, config: "TrainConfig", steps_per_epoch: int, teacher: nn.Module | None = None) -> None:
        super().__init__(config, steps_per_epoch, teacher)
        self._rng = random.Random(config.seed)
        self._drawn = ""
        self._sorted = -1

    def attach(self, model: nn.Module, epoch: int) -> None:
        """The original takes the most important channels; widths are drawn from a new stream."""
        super().attach(model, epoch)
        self._rng = random.Random(f"{self.config.seed} {epoch}")
        self._drawn = "random" if epoch < self.config.wide_until else "random-inner"
        found = giant_in_width(model)
        if found is not None and self._sorted < epoch < self.config.sort_until:
            most_important_first_(*found)
        self._sorted = max(self._sorted, epoch)

    def phase(self, epoch: int) -> str:
        """The method's own, where it has several; and which widths are drawn."""
        drawn = "all widths" if epoch < self.config.wide_until else "inner widths"
        return f"{super().phase(epoch)}, {drawn}"

    def learn(self, passes: Passes, batch: Batch) -> tuple[Tensor, Tensor]:
        """The network's own gradients, and those of the wider one."""
        wide = widths_of(passes.model) is not None
        found = passes.learn(lambda: self.loss(passes.model, batch), more=wide)
        if wide:
            with at_width(passes.model, self._drawn, rng=self._rng):
                passes.learn(lambda: self.cross_entropy(passes.model, batch))
        return found

    def macs(self, model: nn.Module, example: Tensor) -> tuple[int, int]:
        """See `Method.macs`; of the wider network the mean of a few draws."""
        own, larger = super().macs(model, example)
        if widths_of(model) is None:
            return own, larger
        rng, total = random.Random(0), 0
        for _ in range(DRAWN):
            with at_width(model, self._drawn, rng=rng):
                total += cost(model, example).macs
        return own, larger + total // DRAWN

    def state_dict(self) -> dict[str, Any]:
        """The epoch whose channels are sorted: a resumed run does not sort again what it loads."""
        return super().state_dict() | {"sorted": self._sorted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        super().load_state_dict(state)
        self._sorted = state["sorted"]
