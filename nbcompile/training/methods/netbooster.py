"""NetBooster: train the giant, make its inner activations linear, fine-tune, fuse.

Source: Yu et al. 2023, arXiv:2306.13586, sec. 3; one learning-rate cosine over all phases is ours (the paper does not
say what happens to the learning rate when the slopes start to rise), and so are the phase before the giant, training
in weight space, and contracting early; `rise.py` says how slopes go up.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from nbcompile.collapse import collapse_
from nbcompile.core.blocks import sites
from nbcompile.core.errors import UsageError
from nbcompile.core.example import inputs_for
from nbcompile.expansion import expand
from nbcompile.fusion import fuse
from nbcompile.training.batch import Batch
from nbcompile.training.methods.base import Method
from nbcompile.training.methods.groups import inserted_groups
from nbcompile.training.methods.passes import Passes
from nbcompile.training.methods.rise import Rise

if TYPE_CHECKING:
    from nbcompile.training.options.config import TrainConfig


class NetBooster(Method):
    """Expands the network where it is not a giant yet, and moves the slopes after every optimiser step."""

    def __init__(self, config: "TrainConfig", steps_per_epoch: int, teacher: nn.Module | None = None) -> None:
        super().__init__(config, steps_per_epoch, teacher)
        self._phases = config.phases
        self._rise = Rise(config, steps_per_epoch)

    def prepare(self, model: nn.Module) -> nn.Module:
        """The network itself.

        Raises:
            UsageError: if it is a giant whose slopes have already risen, or that is to be trained plainly first.
        """
        slope = max((float(block.slope) for block in sites(model).values()), default=0.0)
        if slope > 0:
            raise UsageError(f"the giant already stands at slope {slope:.6g}: give one at 0, or resume its own run")
        if sites(model) and self._phases.giant:
            raise UsageError(f"plain_epochs {self._phases.giant} is for a network that is not expanded yet")
        for block in sites(model).values():
            block.ramp.zero_()  # a saved giant may have counted steps
        return model

    def advance(self, model: nn.Module, epoch: int) -> nn.Module:
        """Expanded at the start of the giant's phase; at the end of the decay in weight space, or contracted."""
        c, phases = self.config, self._phases
        if epoch == phases.giant and not sites(model):
            (example,) = inputs_for(model, None, who="train")
            model = expand(model, example, where=c.where, block=c.block, ratio=c.ratio, preserve=c.preserve)
        if epoch == phases.tune and sites(model) and (c.collapse or c.contract_at == "decay"):
            self._rise.attach(model, epoch)
            model = collapse_(model) if c.collapse else fuse(model)
        return model

    def attach(self, model: nn.Module, epoch: int) -> None:
        """From now on the slopes of ``model`` are moved."""
        self._rise.attach(model, epoch)

    def phase(self, epoch: int) -> str:
        """``plain``, ``giant``, ``plt``, then ``fine-tune``."""
        giant, decay, tune = self._phases
        if epoch < giant:
            return "plain"
        if epoch < decay:
            return "giant"
        return "plt" if epoch < tune else "fine-tune"

    def learn(self, passes: Passes, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Method.learn`; the slopes may follow the loss."""
        self._rise.look(passes, batch)
        loss, logits = super().learn(passes, batch)
        self._rise.see(passes, logits, batch)
        return loss, logits

    def after_step(self) -> None:
        """The slopes go up."""
        self._rise.step()

    @property
    def slope(self) -> float | None:
        """0 while the giant is trained, 1 when it is linear; None where the network is not expanded."""
        return self._rise.slope

    def measured(self) -> dict[str, float]:
        """What the slopes cost, where they follow the loss."""
        return super().measured() | self._rise.measured()

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Inserted layers may learn at a rate, and decay at a rate, of their own."""
        c = self.config
        return inserted_groups(super().parameter_groups(model), model, c.inserted_lr, c.inserted_weight_decay)

    def fused(self, model: nn.Module) -> nn.Module | None:
        """The original architecture again."""
        return fuse(model) if sites(model) else None

    def state_dict(self) -> dict[str, Any]:
        """How the slopes follow the loss."""
        return super().state_dict() | {"rise": self._rise.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``; a run that an older version began knows no such thing."""
        super().load_state_dict(state)
        if "rise" in state:
            self._rise.load_state_dict(state["rise"])
