"""PLT, progressive linearisation tuning: the slopes of a giant's blocks from 0 to 1, step by step."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nbcompile.core.blocks import Expanded, sites
from nbcompile.core.errors import PreconditionError, UsageError
from nbcompile.core.wrappers import require_loaded, unwrap
from nbcompile.wide.giants import refuse_wide

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "cosine": lambda t: 0.5 - 0.5 * math.cos(math.pi * t),
}
"""The slope over the share of the ramp that is behind; from 0 at 0 to exactly 1 at 1."""

ORDERS = ("together", "from-input")
"""In which order blocks rise, by name; a list of the blocks' names is an order, too."""


class PLT:
    """Raises the slopes of a giant's inserted activations from 0 (as they were) to exactly 1 (linear).

    Call :meth:`step` after every ``optimizer.step()``. The slopes live in the giant as buffers, and so does the
    position of the ramp: a giant saved mid-ramp and loaded again goes on from there, with this object's own
    ``state_dict`` or without.

    Args:
        giant: what ``expand`` returned, as it is or wrapped (DDP, ``torch.compile``); its slopes are changed.
        steps: length of the ramp, in optimiser steps, >= 1.
        start: optimiser steps before the ramp, >= 0.
        also: copies of the giant (EMA) whose slopes are *set* to the same values, never averaged.
        shape: ``linear``, as in the paper, or ``cosine``, slow at both ends; it is not saved.
        order: ``together``, as in the paper; ``from-input``, one block after the other, in the order of the giant's
            modules; or the names of all blocks, in any order, such as that of their :func:`linear_costs`. One after the
            other, each block has its own share of the ``steps``.

    Raises:
        UsageError: if the numbers, the shape or the order do not fit, or the giant stands in the middle of another
            ramp.
        PreconditionError: if ``giant`` or one of ``also`` has no expansion blocks.

    Source: NetBooster (arXiv 2306.13586) sec. 3.4: raised uniformly in each iteration; one after the other is ours.
    """

    def __init__(
        self,
        giant: nn.Module,
        steps: int,
        start: int = 0,
        also: Sequence[nn.Module] = (),
        shape: str = "linear",
        order: str | Sequence[str] = "together",
    ) -> None:
        for name, value, least in (("steps", steps, 1), ("start", start, 0)):
            _require_count(name, value, least)
        if shape not in SHAPES:
            raise UsageError(f"PLT: shape='{shape}' is not known; known are {', '.join(SHAPES)}")
        self.steps = steps
        self.start = start
        self._shape = SHAPES[shape]
        models = [_blocks(model) for model in (giant, *also)]
        self._names = list(models[0])
        self._order = _checked(order, self._names)
        self._blocks = [list(blocks.values()) for blocks in models]
        self._first = self._blocks[0][0]
        self._step = 0
        self._loads = self._first.loads
        self._resume()
        self._apply()

    @property
    def slope(self) -> float:
        """The slope now, in [0, 1], the mean where blocks have slopes of their own; exactly 1.0 at the end."""
        self._notice_load()
        slopes = [self._slope(*ramp) for ramp in self._ramps()]
        return slopes[0] if len({*slopes}) == 1 else sum(slopes) / len(slopes)

    @property
    def done(self) -> bool:
        """Whether the blocks are linear."""
        return self.slope == 1.0

    @torch.no_grad()
    def step(self) -> None:
        """Count one optimiser step and set the slopes."""
        self._notice_load()
        self._step += 1
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """Position and ramp, in optimiser steps; the order, where blocks do not rise together."""
        self._notice_load()
        order = {} if self._order == "together" else {"order": self._order}
        return {"step": self._step, "start": self.start, "steps": self.steps, **order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``, with its ramp; slopes are set at once.

        Raises:
            UsageError: if it is no state of a PLT.
        """
        if set(state) - {"order"} != {"step", "start", "steps"}:
            raise UsageError(f"PLT.load_state_dict: needs step, start and steps, found {sorted(map(str, state))}")
        for name, least in (("step", 0), ("start", 0), ("steps", 1)):
            _require_count(f"load_state_dict: {name}", state[name], least)
        self._order = _checked(state.get("order", "together"), self._names)
        self._step, self.start, self.steps = state["step"], state["start"], state["steps"]
        self._loads = self._first.loads
        self._apply()

    def _ramps(self) -> list[tuple[int, int]]:
        """Start and length of each block's own ramp, in optimiser steps, in the order of the modules."""
        return block_ramps(self._names, self.steps, self.start, self._order)

    def _slope(self, start: int, steps: int) -> float:
        return self._shape(min(max((self._step - start) / steps, 0.0), 1.0))

    @torch.no_grad()
    def _apply(self) -> None:
        for blocks in self._blocks:
            for block, (start, steps) in zip(blocks, self._ramps(), strict=True):
                slope = self._slope(start, steps)
                block.slope.fill_(slope)
                for cell, value in zip(block.ramp, (self._step, start, steps), strict=True):
                    cell.fill_(value)  # copying a tensor would wait for the device
                block.collapsed = block.collapsed and slope == 1.0

    def _notice_load(self) -> None:
        """A state_dict loaded into the giant since the last step moves the ramp to where that one stood."""
        if self._first.loads != self._loads:
            self._loads = self._first.loads
            self._resume()
            self._apply()

    def _resume(self) -> None:
        """Take the position at which the giant stands, if its blocks are on the same ramps."""
        found = [tuple(int(v) for v in block.ramp) for block in self._blocks[0]]
        step = found[0][0]
        if found == [(step, *ramp) for ramp in self._ramps()]:
            self._step = step
            return
        standing = [(float(block.slope), ramp) for block, ramp in zip(self._blocks[0], found, strict=True)]
        slope, (_, start, steps) = max(standing, key=lambda one: one[0])
        if slope != 0.0:
            order = "" if {ramp[1:] for ramp in found} == {(start, steps)} else " in another order"
            raise UsageError(
                f"PLT: the giant stands at slope {slope:.6g} of a ramp with start={start} and steps={steps}{order}, "
                f"not start={self.start} and steps={self.steps}: give PLT the same numbers"
            )
        self._step = 0


def block_ramps(names: Sequence[str], steps: int, start: int, order: str | Sequence[str]) -> list[tuple[int, int]]:
    """Start and length of the ramp of each block, in optimiser steps.

    Args:
        names: of the blocks.
        steps: length of the whole ramp, >= 1.
        start: of the whole ramp.
        order: as of :class:`PLT`. Where there are more blocks than steps, some of them rise in the same step.

    Raises:
        UsageError: if the order is not known, or not one of these blocks.
    """
    order = _checked(order, names)
    if order == "together":
        return [(start, steps)] * len(names)
    share = {}
    for i, name in enumerate(names if order == "from-input" else order):
        begin, end = steps * i // len(names), steps * (i + 1) // len(names)
        share[name] = (start + begin, max(1, end - begin))
    return [share[name] for name in names]


@torch.no_grad()
def linear_costs(giant: nn.Module, loss: Callable[[nn.Module], float]) -> dict[str, float]:
    """How much the loss rises where one block is made linear, the others as they are.

    Args:
        giant: with blocks at slope 0; it ends as it was.
        loss: of the giant that it is given, on the same images at every call. Its batch norms then take the
            statistics of the batch, since those that they have kept belong to blocks that are not linear; all else is
            in eval mode.

    Returns:
        The increase by the block's name; ``sorted(costs, key=costs.get)`` is an ``order`` of :class:`PLT` in which the
        cheapest block comes first.

    Raises:
        UsageError: if slopes have risen already.
        PreconditionError: if ``giant`` has no expansion blocks.

    Source: ours.
    """
    blocks = _blocks(giant)
    if slope := max(float(block.slope) for block in blocks.values()):
        raise UsageError(f"linear_costs: the giant stands at slope {slope:.6g}: ask before its slopes rise")
    kept = {name: value.clone() for name, value in giant.named_buffers()}
    training = [(module, module.training) for module in giant.modules()]
    giant.eval()
    for module in giant.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    try:
        at_0, found = loss(giant), {}
        for name, block in blocks.items():
            block.slope.fill_(1.0)
            found[name] = loss(giant) - at_0
            block.slope.fill_(0.0)
    finally:
        for module, mode in training:
            module.training = mode
        for name, value in giant.named_buffers():
            value.copy_(kept[name])
    return found


def _require_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"PLT: {name}={value!r} must be a whole number of optimiser steps, at least {least}")


def _checked(order: str | Sequence[str], names: Sequence[str]) -> str | list[str]:
    if isinstance(order, str) and order in ORDERS:
        return order
    if isinstance(order, str) or sorted(map(str, order)) != sorted(names):
        raise UsageError(f"PLT: order={order!r} must be {', '.join(ORDERS)} or a list of all of {', '.join(names)}")
    return list(order)


def _blocks(model: nn.Module) -> dict[str, Expanded]:
    model = unwrap(model)
    blocks = sites(model)
    if not blocks:
        refuse_wide(model, "PLT", "it has no slopes and needs none; fuse gives the original back as it is")
        raise PreconditionError(f"PLT: {type(model).__name__} has no expansion blocks; expand it first")
    require_loaded(model, "PLT")
    return blocks
