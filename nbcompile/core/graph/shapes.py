"""Shapes and dtypes of the values of a graph, from one run that happens only if somebody asks."""

from typing import Any

import torch
from torch import Tensor, fx

from nbcompile.core.example import Inputs
from nbcompile.core.running import interpret


class Shapes:
    """Shapes and dtypes on the example input.

    Args:
        gm: the graph; it is run when the first shape is asked for, and left as it was.
        inputs: of the model; None where none are known: then no shape is.
    """

    def __init__(self, gm: fx.GraphModule, inputs: Inputs | None) -> None:
        self._gm = gm
        self._inputs = inputs
        self._seen: dict[fx.Node, tuple[tuple[int, ...], torch.dtype]] | None = None

    def of(self, node: fx.Node) -> tuple[int, ...] | None:
        """The shape of what ``node`` gives; None where it is not known, or no tensor."""
        seen = self._all().get(node)
        return None if seen is None else seen[0]

    def dtype(self, node: fx.Node) -> torch.dtype | None:
        """The dtype of what ``node`` gives; None where it is not known, or no tensor."""
        seen = self._all().get(node)
        return None if seen is None else seen[1]

    def _all(self) -> dict[fx.Node, tuple[tuple[int, ...], torch.dtype]]:
        if self._seen is None:
            seen: dict[fx.Node, tuple[tuple[int, ...], torch.dtype]] = {}

            def note(node: fx.Node, value: Any) -> None:
                if isinstance(value, Tensor):
                    seen[node] = tuple(value.shape), value.dtype

            if self._inputs is not None:
                interpret(self._gm, self._inputs, after=note)
            self._seen = seen
        return self._seen
