"""Parts of a map's output channels, and taps that read nothing: the same numbers, computed in another way."""

from collections.abc import Sequence
from dataclasses import replace

from torch.nn import functional as F

from nbcompile.core.algebra.maps import AffineMap


def part(m: AffineMap, index: int, count: int) -> AffineMap:
    """Outputs ``index`` of ``count`` equal parts of ``m``.

    A map without groups reads all its inputs for every part; one with a group per input channel only its share of
    them.

    Args:
        m: without groups, or depthwise; ``count`` divides its outputs and, if depthwise, its groups.
        index: from 0.
        count: how many parts.
    """
    rows = slice(index * m.weight.shape[0] // count, (index + 1) * m.weight.shape[0] // count)
    bias = None if m.bias is None else m.bias[rows]
    return replace(m, weight=m.weight[rows], bias=bias, groups=max(m.groups // count, 1))


def widened(m: AffineMap, taps: Sequence[int]) -> AffineMap:
    """``m`` with so many zero taps after the last, per spatial axis: the same map if its padding reaches them."""
    ends = [n for more in reversed(taps) for n in (0, more)]
    return replace(m, weight=F.pad(m.weight, ends))
