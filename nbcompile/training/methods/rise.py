"""How the slopes of a run's giant go up: the ramp of `nbcompile.PLT` over epochs, its order, and what makes it wait.

Source: together and evenly is the paper's (Yu et al. 2023, arXiv:2306.13586, sec. 3.4); one block after the other, and
waiting for the loss, are ours.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbcompile.core.blocks import sites
from nbcompile.plt import PLT, block_ramps, linear_costs
from nbcompile.training.batch import Batch
from nbcompile.training.methods.loss_budget import LossBudget
from nbcompile.training.methods.passes import Passes

if TYPE_CHECKING:
    from nbcompile.training.options.config import TrainConfig


class Rise:
    """Moves the slopes of the giant that is trained; before there is one, it does nothing.

    Args:
        config: of the run.
        steps_per_epoch: optimiser steps.
    """

    def __init__(self, config: "TrainConfig", steps_per_epoch: int) -> None:
        self._phases = giant, decay, tune = config.phases
        self._steps_per_epoch, self._shape = steps_per_epoch, config.decay
        self._start, self._steps = (decay - giant) * steps_per_epoch, max(1, (tune - decay) * steps_per_epoch)
        self._budget: LossBudget | None = None
        if config.plt_loss is not None:
            self._budget = LossBudget(config.plt_loss, self._start, self._steps)
            self._steps = self._budget.length
        self._by_cost = config.rise == "cheapest-first"
        self._order: str | list[str] = "together" if self._by_cost else config.rise
        self._loss = 0.0
        self._epoch = 0
        self._costs: dict[str, float] = {}
        self._giant: nn.Module | None = None
        self._plt: PLT | None = None

    def attach(self, model: nn.Module, epoch: int) -> None:
        """From now on the slopes of ``model`` are moved; they stand where they do at the start of ``epoch``."""
        self._giant, self._plt = None, None
        self._epoch, self._costs = epoch, {}
        blocks = sites(model)
        if not blocks:
            return
        self._giant = model
        step = self._position(int(next(iter(blocks.values())).ramp[0]))
        ramps = block_ramps(list(blocks), self._steps, self._start, self._order)
        for block, ramp in zip(blocks.values(), ramps, strict=True):
            block.ramp.copy_(torch.tensor([step, *ramp]))
        self._plt = PLT(model, steps=self._steps, start=self._start, shape=self._shape, order=self._order)

    def look(self, passes: Passes, batch: Batch) -> None:
        """A part of a batch will be learnt from: the decay's first one says which blocks are cheapest."""
        if not self._by_cost or self._giant is None or self._epoch != self._phases.decay or self._order != "together":
            return

        def loss(giant: nn.Module) -> float:
            with passes.fabric.autocast():
                return float(F.cross_entropy(giant(batch.images).float(), batch.labels))

        found = linear_costs(self._giant, loss)
        costs = dict(zip(found, passes.averaged(*found.values()), strict=True))
        self._order = sorted(costs, key=costs.__getitem__)
        self.attach(self._giant, self._epoch)
        self._costs = costs

    def see(self, passes: Passes, logits: Tensor, batch: Batch) -> None:
        """A part of a batch was learnt from, and had the answers ``logits``; what counts is their loss from labels."""
        if self._budget is None or self._plt is None:
            return
        self._loss += float(F.cross_entropy(logits.float(), batch.labels)) * passes.share
        if passes.last:
            self._budget.see(*passes.averaged(self._loss))
            self._loss = 0.0

    def step(self) -> None:
        """Count one optimiser step."""
        if self._plt is None:
            return
        if self._budget is None or self._budget.goes_up(self._plt.state_dict()["step"]):
            self._plt.step()

    @property
    def slope(self) -> float | None:
        """The mean of the slopes; None where there is no giant."""
        return None if self._plt is None else self._plt.slope

    def measured(self) -> dict[str, float]:
        """What the blocks cost, in the epoch in which that was found out; the loss that is waited for, while it is."""
        _, decay, tune = self._phases
        rises = self._budget is not None and self._plt is not None and decay <= self._epoch < tune
        over = {"loss over the giant's": self._budget.over} if rises and self._budget is not None else {}
        return {f"cost of {name}": cost for name, cost in self._costs.items()} | over

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beyond the giant, whose ramps say how far they are."""
        return {"order": self._order, "budget": None if self._budget is None else self._budget.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self._order = state["order"]
        if self._budget is not None:
            self._budget.load_state_dict(state["budget"])

    def _position(self, standing: int) -> int:
        """Steps of the ramp that are behind at the start of the epoch; those that it waited are not in the epochs."""
        giant, decay, tune = self._phases
        step = (self._epoch - giant) * self._steps_per_epoch
        if self._epoch >= tune:
            return max(step, self._start + self._steps)  # a decay without a length has no steps of its own
        return standing if self._budget is not None and self._epoch > decay else step
