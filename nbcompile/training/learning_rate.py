"""The learning rate of the reference recipe."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """Linear warm-up, then one cosine to zero, or several, each from the peak.

    Attributes:
        peak: learning rate at the end of the warm-up.
        warmup: length of the warm-up, in optimiser steps, >= 0.
        steps: length of the whole run, in optimiser steps, > ``warmup``.
        start: optimiser steps before it begins.
        restarts: optimiser steps at which another cosine begins, rising, between ``warmup`` and ``steps``.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983.
    """

    peak: float
    warmup: int
    steps: int
    start: int = 0
    restarts: Sequence[int] = ()

    def lr(self, step: int) -> float:
        """Learning rate of optimiser step ``step``, counted from 0; exactly 0 from ``start + steps`` on."""
        step -= self.start
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        if step >= self.steps:
            return 0.0
        points = (self.warmup, *self.restarts, self.steps)
        i = bisect_right(points, step)
        start, end = points[i - 1], points[i]
        return 0.5 * self.peak * (1 + math.cos(math.pi * (step - start) / (end - start)))
