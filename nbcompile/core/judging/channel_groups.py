"""Which channels of a value are judged together: those of like size.

An error is told by the size of what it is in. Beside boxes of 640 pixels nothing is seen of what happens to scores of
0 to 1, nor beside a constant of 1000 of what varies by 1. Integers share one scale, which has to fit all that lies
without a gap between them (:func:`alike`); floating-point numbers have each their own, so that nothing need be judged
by what is much larger (:func:`by_size`).
"""

from collections.abc import Sequence
from itertools import pairwise
from math import log

GAP = 32.0
"""How many times wider the values of channels must spread to be judged apart: 5 of 8 bits lie between the two."""


def alike(low: Sequence[float], high: Sequence[float]) -> list[list[int]]:
    """Channels in groups, by how far their values spread; there is a gap of ``GAP`` times between two groups.

    Channels that are constant carry nothing, and go with the first group; large ones, beside which it would not be
    seen, are a group.

    Args:
        low: the lowest value of each channel.
        high: the highest; below the lowest where a channel has no value: it is in no group.
    """
    there = [c for c, (a, b) in enumerate(zip(low, high, strict=True)) if a <= b]
    spread = {c: high[c] - low[c] for c in there}
    varied = sorted((c for c in there if spread[c] > 0), key=lambda c: -spread[c])
    if not varied:
        return [there]
    groups = [[varied[0]]]
    for before, channel in pairwise(varied):
        if spread[before] >= GAP * spread[channel]:
            groups.append([])
        groups[-1].append(channel)
    constant = [c for c in there if spread[c] == 0]
    large = [c for c in constant if max(abs(low[c]), abs(high[c])) >= GAP * spread[varied[0]]]
    groups[0] += [c for c in constant if c not in large]
    return [sorted(group) for group in (*groups, large) if group]


def by_size(sizes: Sequence[float], largest: float) -> list[list[int]]:
    """Channels in groups, the largest first: each of those that are ``GAP`` to ``GAP ** 2`` times smaller, and so on.

    Args:
        sizes: of each channel; one of 0 is in no group.
        largest: of all.
    """
    groups: dict[int, list[int]] = {}
    for channel, size in enumerate(sizes):
        if size > 0:
            groups.setdefault(int(log(largest / size, GAP)), []).append(channel)
    return [groups[key] for key in sorted(groups)]


def channels_named(channels: Sequence[int], what: str = "channel") -> str:
    """Such as ``channels 3 to 5``."""
    first, last = channels[0], channels[-1]
    if len(channels) == 1:
        return f"{what} {first}"
    if last - first + 1 == len(channels):
        return f"{what}s {first} to {last}"
    return f"{len(channels)} {what}s ({first} and others)"
