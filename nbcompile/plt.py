"""PLT, progressive linearisation tuning: the slopes of a giant's blocks from 0 to 1, step by step."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from nbcompile.core.blocks import Expanded, sites
from nbcompile.core.errors import PreconditionError, UsageError
from nbcompile.core.giants import refuse_wide
from nbcompile.core.wrappers import require_loaded, unwrap

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "cosine": lambda t: 0.5 - 0.5 * math.cos(math.pi * t),
}
"""The slope over the share of the ramp that is behind; from 0 at 0 to exactly 1 at 1."""


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

    Raises:
        UsageError: if the numbers or the shape do not fit, or the giant stands in the middle of another ramp.
        PreconditionError: if ``giant`` or one of ``also`` has no expansion blocks.

    Source: NetBooster (arXiv 2306.13586) sec. 3.4: raised uniformly in each iteration.
    """

    def __init__(
        self, giant: nn.Module, steps: int, start: int = 0, also: Sequence[nn.Module] = (), shape: str = "linear"
    ) -> None:
        for name, value, least in (("steps", steps, 1), ("start", start, 0)):
            _require_count(name, value, least)
        if shape not in SHAPES:
            raise UsageError(f"PLT: shape='{shape}' is not known; known are {', '.join(SHAPES)}")
        self.steps = steps
        self.start = start
        self._shape = SHAPES[shape]
        self._blocks = [block for model in (giant, *also) for block in _blocks(model)]
        self._first = self._blocks[0]
        self._step = 0
        self._loads = self._first.loads
        self._resume()
        self._apply()

    @property
    def slope(self) -> float:
        """The slope now, in [0, 1]; exactly 1.0 at the end."""
        self._notice_load()
        return self._slope()

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

    def state_dict(self) -> dict[str, int]:
        """Position and ramp, in optimiser steps."""
        self._notice_load()
        return {"step": self._step, "start": self.start, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``, with its ramp; slopes are set at once.

        Raises:
            UsageError: if it is no state of a PLT.
        """
        if set(state) != {"step", "start", "steps"}:
            raise UsageError(f"PLT.load_state_dict: needs step, start and steps, found {sorted(map(str, state))}")
        for name, least in (("step", 0), ("start", 0), ("steps", 1)):
            _require_count(f"load_state_dict: {name}", state[name], least)
        self._step, self.start, self.steps = state["step"], state["start"], state["steps"]
        self._loads = self._first.loads
        self._apply()

    def _slope(self) -> float:
        return self._shape(min(max((self._step - self.start) / self.steps, 0.0), 1.0))

    @torch.no_grad()
    def _apply(self) -> None:
        slope, ramp = self._slope(), (self._step, self.start, self.steps)
        for block in self._blocks:
            block.slope.fill_(slope)
            for cell, value in zip(block.ramp, ramp, strict=True):
                cell.fill_(value)  # copying a tensor would wait for the device
            block.collapsed = block.collapsed and slope == 1.0

    def _notice_load(self) -> None:
        """A state_dict loaded into the giant since the last step moves the ramp to where that one stood."""
        if self._first.loads != self._loads:
            self._loads = self._first.loads
            self._resume()
            self._apply()

    def _resume(self) -> None:
        step, start, steps = (int(v) for v in self._first.ramp)
        if (start, steps) == (self.start, self.steps):
            self._step = step
        elif float(self._first.slope) != 0.0:
            raise UsageError(
                f"PLT: the giant stands at slope {float(self._first.slope):.6g} of a ramp with start={start} and "
                f"steps={steps}, not start={self.start} and steps={self.steps}: give PLT the same numbers"
            )
        else:
            self._step = 0


def _require_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"PLT: {name}={value!r} must be a whole number of optimiser steps, at least {least}")


def _blocks(model: nn.Module) -> list[Expanded]:
    model = unwrap(model)
    blocks = list(sites(model).values())
    if not blocks:
        refuse_wide(model, "PLT", "it has no slopes and needs none; fuse gives the original back as it is")
        raise PreconditionError(f"PLT: {type(model).__name__} has no expansion blocks; expand it first")
    require_loaded(model, "PLT")
    return blocks
