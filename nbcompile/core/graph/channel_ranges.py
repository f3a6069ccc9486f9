"""What values a network's activations meet on real data, channel by channel."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from nbcompile.core.errors import PreconditionError
from nbcompile.core.example import Inputs
from nbcompile.core.graph.nodes import activation_of
from nbcompile.core.running import interpret


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
    ranges: dict[str, ChannelRange] = {}

    def note(node: fx.Node, read: list[Any]) -> None:
        """What an activation reads, before it runs: it may write in place."""
        if activation_of(gm, node) is not None and read[0].ndim > 1:
            seen = ChannelRange(*read[0].transpose(0, 1).flatten(1).aminmax(dim=1))
            ranges[node.name] = ranges[node.name].joined(seen) if node.name in ranges else seen

    empty = True
    for inputs in batches:
        empty = False
        interpret(gm, inputs, before=note)
    if empty:
        raise PreconditionError("the calibration set is empty: no activation's range is known")
    for name, seen in ranges.items():
        if not bool(seen.low.isfinite().all() and seen.high.isfinite().all()):
            raise PreconditionError(f"'{name}' is given values that are NaN or infinite on the calibration set")
    return ranges
