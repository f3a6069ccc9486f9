"""An exponential moving average of a network's weights, that is measured and written in place of the last ones."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nbcompile.core.blocks import sites
from nbcompile.core.copies import copied
from nbcompile.wide.slices import move_own_
from nbcompile.wide.widths import giant_in_width, widths_of

_STATISTICS = ("running_mean", "running_var")


class Average:
    """The average of ``live`` over the optimiser steps, ``a += (1 - d) * (w - a)`` after each.

    Averaged are the parameters and the running statistics of norms: statistics of the last step belong to weights that
    the average has not reached yet. All other buffers are those of ``live``: slopes and ramps of expansion blocks are
    not to lag behind, counters are no numbers to average, and masks may be infinite.

    Args:
        live: the network that is trained.
        decay: ``d``, in [0, 1). At the beginning it is ``(1 + n) / (10 + n)`` after ``n`` steps, if that is less, so
            that the first weights do not stay in the average for ``1 / (1 - d)`` steps. At every step in which slopes
            move it begins anew: weights and statistics of lower slopes are those of another function.

    Attributes:
        model: a copy of ``live`` with the averaged weights.

    Source: the warm-up is that of TensorFlow's ``tf.train.ExponentialMovingAverage``; timm's ``ModelEmaV3`` and
    torchvision's reference training average the statistics, too.
    """

    def __init__(self, live: nn.Module, decay: float) -> None:
        self.model = copied(live)
        self._decay = decay
        self._updates = 0
        self._slope: float | None = None
        self._wide = widths_of(live) is not None
        self._found: tuple[nn.Module, list[Tensor], list[Tensor]] | None = None

    @torch.no_grad()
    def update(self, live: nn.Module, slope: float | None = None) -> None:
        """Count one optimiser step of ``live``, whose inserted activations stand at ``slope``."""
        if slope != self._slope:
            self._slope, self._updates = slope, 0
        self._have_the_channels_of(live)
        n = self._updates
        decay = min(self._decay, (1 + n) / (10 + n))
        blend = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        blend(*self._tensors(live), None)
        self._updates += 1

    def _tensors(self, live: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """What is averaged, and of what; looked up once, for that takes longer than to average a tiny network.

        Those of a giant in width are others after each change of its width.
        """
        if self._wide:
            return _averaged(self.model), _averaged(live)
        if self._found is None or self._found[0] is not live:
            self._found = live, _averaged(self.model), _averaged(live)
        return self._found[1:]

    @torch.no_grad()
    def follow(self, live: nn.Module) -> None:
        """Take over from ``live`` what is not averaged; called before ``model`` is used."""
        for (name, mine), theirs in zip(self.model.named_buffers(), live.buffers(), strict=True):
            if not name.endswith(_STATISTICS):
                mine.copy_(theirs)
        for block, trained in zip(sites(self.model).values(), sites(live).values(), strict=True):
            block.collapsed = trained.collapsed

    def _have_the_channels_of(self, live: nn.Module) -> None:
        """Of giants in width: the original's channels are the same in both."""
        if not self._wide:
            return
        mine, theirs = giant_in_width(self.model), giant_in_width(live)
        if mine is not None and theirs is not None and not torch.equal(mine[1].layout.unit, theirs[1].layout.unit):
            move_own_(*mine, theirs[1].layout.unit)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"model": self.model.state_dict(), "updates": self._updates, "slope": self._slope}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``; that of an older version knows no slope, and begins anew."""
        self.model.load_state_dict(state["model"])
        self._updates, self._slope = state["updates"], state.get("slope")


def _averaged(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *(x for name, x in model.named_buffers() if name.endswith(_STATISTICS))]
