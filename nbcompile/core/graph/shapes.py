"""Shapes and dtypes of the values of a graph, from one run that happens only if somebody asks."""

from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from nbcompile.core.example import Inputs
from nbcompile.core.running import rehearsal


class Shapes:
    """Shapes and dtypes on the example input.

    Args:
        gm: the graph; it is run when the first shape is asked for, and left as it was.
        inputs: of the model; None where none are known: then no shape is.
    """

    def __init__(self, gm: fx.GraphModule, inputs: Inputs | None) -> None:
        self._gm = gm
        self._inputs = inputs
        self._found: dict[fx.Node, tuple[tuple[int, ...], torch.dtype]] | None = None

    def of(self, node: fx.Node) -> tuple[int, ...] | None:
        """The shape of what ``node`` gives; None where it is not known, or no tensor."""
        found = self._all().get(node)
        return None if found is None else found[0]

    def dtype(self, node: fx.Node) -> torch.dtype | None:
        """The dtype of what ``node`` gives; None where it is not known, or no tensor."""
        found = self._all().get(node)
        return None if found is None else found[1]

    def _all(self) -> dict[fx.Node, tuple[tuple[int, ...], torch.dtype]]:
        if self._found is None:
            self._found = {} if self._inputs is None else _run(self._gm, self._inputs)
        return self._found


def _run(gm: fx.GraphModule, inputs: Inputs) -> dict[fx.Node, tuple[tuple[int, ...], torch.dtype]]:
    found: dict[fx.Node, tuple[tuple[int, ...], torch.dtype]] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                found[n] = tuple(value.shape), value.dtype
            return value

    class Interpreted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gm = gm

        def forward(self, *inputs: Tensor) -> Any:
            return Recorder(self.gm).run(*(x for x in tree_leaves(inputs) if isinstance(x, Tensor)))

    with rehearsal(gm, inputs) as (buffers, copies):
        functional_call(Interpreted(), {f"gm.{key}": value for key, value in buffers.items()}, copies)
    return found
