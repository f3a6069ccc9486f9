"""NetBooster: train the giant, make its inner activations linear, fine-tune, fuse.

Source: Yu et al. 2023, arXiv:2306.13586, sec. 3; one learning-rate cosine over all three phases is ours (the paper
does not say what happens to the learning rate when the slopes start to rise).
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from nbcompile.core.blocks import sites
from nbcompile.core.errors import UsageError
from nbcompile.expansion import expand
from nbcompile.fusion import fuse
from nbcompile.plt import PLT
from nbcompile.training.config import TrainConfig
from nbcompile.training.methods.base import Method


class NetBooster(Method):
    """Expands the network where it is not a giant yet, and moves the slopes after every optimiser step."""

    name: ClassVar[str] = "netbooster"

    def __init__(self, config: TrainConfig, steps_per_epoch: int) -> None:
        super().__init__(config, steps_per_epoch)
        self._start, self._length = config.ramp
        self._plt: PLT

    def prepare(self, model: nn.Module, example: Tensor) -> nn.Module:
        """The giant, at the beginning of its ramp.

        Raises:
            UsageError: if ``model`` is a giant whose slopes have already risen.
        """
        c = self.config
        if not sites(model):
            model = expand(model, example, where=c.where, block=c.block, ratio=c.ratio, preserve=c.preserve)
        slope = max(float(block.slope) for block in sites(model).values())
        if slope > 0:
            raise UsageError(f"the giant already stands at slope {slope:.6g}: give one at 0, or resume its own run")
        steps, start = self._length * self.steps_per_epoch, self._start * self.steps_per_epoch
        self._plt = PLT(model, steps=steps, start=start)
        self._plt.load_state_dict({"step": 0, "start": start, "steps": steps})  # a saved giant may have counted steps
        return model

    def phase(self, epoch: int) -> str:
        """``giant``, then ``plt``, then ``fine-tune``."""
        if epoch < self._start:
            return "giant"
        return "plt" if epoch < self._start + self._length else "fine-tune"

    def after_step(self) -> None:
        """The slopes go up."""
        self._plt.step()

    @property
    def slope(self) -> float:
        """0 while the giant is trained, 1 when it is linear."""
        return self._plt.slope

    def fused(self, model: nn.Module) -> nn.Module:
        """The original architecture again."""
        return fuse(model)

    def state_dict(self) -> dict[str, Any]:
        """That of the schedule; the slopes themselves are buffers of the giant."""
        return self._plt.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self._plt.load_state_dict(state)
