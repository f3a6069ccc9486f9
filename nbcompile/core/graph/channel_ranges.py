"""What values a network's activations meet on real data, channel by channel."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from nbcompile.core.errors import PreconditionError
from nbcompile.core.example import Inputs
from nbcompile.core.graph.nodes import activation_of
from nbcompile.core.running import rehearsal


@dataclass(frozen=True)
class ChannelRange:
    """What an activation was given.

    Attributes:
        low: ``(C,)``, the smallest value of every channel.
        high: ``(C,)``, the largest.
    """

    low: Tensor
    high: Tensor

    def joined(self, other: "ChannelRange") -> "ChannelRange":
        """The range of both."""
        return ChannelRange(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))


ChannelRanges = Mapping[str, ChannelRange]
"""By the name of the activation's node in the graph. Of one graph, with the weights that it had."""


def channel_ranges(gm: fx.GraphModule, batches: Iterable[Inputs]) -> ChannelRanges:
    """The smallest and largest value per channel (dimension 1) of what every activation of ``gm`` reads.

    Args:
        gm: is run on every batch, and left as it was.
        batches: inputs of the model.

    Raises:
        PreconditionError: if there is no batch, the network does not run on one, or a value is not finite.
    """
    found: dict[str, ChannelRange] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if activation_of(gm, n) is not None:  # before it runs: it may write in place
                value = self.env[n.all_input_nodes[0]]
                if value.ndim > 1:
                    seen = ChannelRange(*value.transpose(0, 1).flatten(1).aminmax(dim=1))
                    found[n.name] = found[n.name].joined(seen) if n.name in found else seen
            return super().run_node(n)

    class Interpreted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gm = gm

        def forward(self, *inputs: Any) -> Any:
            return Recorder(self.gm).run(*(x for x in tree_leaves(inputs) if isinstance(x, Tensor)))

    empty = True
    for inputs in batches:
        empty = False
        with rehearsal(gm, inputs) as (buffers, copies):
            functional_call(Interpreted(), {f"gm.{key}": value for key, value in buffers.items()}, copies)
    if empty:
        raise PreconditionError("the calibration set is empty: no activation's range is known")
    for name, seen in found.items():
        if not bool(seen.low.isfinite().all() and seen.high.isfinite().all()):
            raise PreconditionError(f"'{name}' is given values that are NaN or infinite on the calibration set")
    return found
