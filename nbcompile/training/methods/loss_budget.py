"""A budget of loss for the slopes of a giant: they wait where its linearisation costs too much.

Source: ours.
"""

from typing import Any

KEPT = 0.98
"""Of the running loss, at each step: about fifty steps count."""

SHORTEST = 4
"""The slopes rise in a fourth of their epochs where nothing makes them wait."""


class LossBudget:
    """Says at each optimiser step whether the slopes go up.

    They wait while the running training loss is more than ``most`` above the giant's, as it was when they began to
    rise, and as long as the steps that are left suffice.

    Args:
        most: nats.
        start: optimiser steps of the giant before the slopes may rise.
        steps: after which they must have risen, >= 1.

    Attributes:
        length: steps that the slopes take where they never wait.
    """

    def __init__(self, most: float, start: int, steps: int) -> None:
        self.length = -(-steps // SHORTEST)
        self._most, self._start, self._steps = most, start, steps
        self._running, self._giant, self._seen = 0.0, 0.0, 0

    def see(self, loss: float) -> None:
        """The loss of an optimiser step, from labels alone, in nats."""
        kept = min(KEPT, self._seen / (self._seen + 1))
        self._running = kept * self._running + (1 - kept) * loss
        self._seen += 1
        if self._seen <= max(1, self._start):
            self._giant = self._running

    def goes_up(self, risen: int) -> bool:
        """Whether the slopes go up after the step that was seen last.

        Args:
            risen: steps up so far, those of the giant included.
        """
        if risen < self._start or self.over <= self._most:
            return True
        left = self._start + self._steps - self._seen
        return left < self._start + self.length - risen

    @property
    def over(self) -> float:
        """Running loss over the giant's, in nats."""
        return self._running - self._giant

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"running": self._running, "giant": self._giant, "seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self._running, self._giant, self._seen = state["running"], state["giant"], state["seen"]
