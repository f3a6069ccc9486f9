"""Which channels of a giant in width are the original's: the most important ones.

Source: NetAug's released training code, which sorts the channels of inverted residuals at the start of an epoch by the
sum of the absolute weights that read them. There weights are moved, and the optimiser's momentum stays behind; here the
index of the original's channels is another one, and nothing moves.
"""

from collections import Counter

import torch
from torch import nn

from nbcompile.core.width.labels import Slot
from nbcompile.core.width.layout import WidthLayout
from nbcompile.core.width.slices import move_own_
from nbcompile.core.width.widths import Widths


@torch.no_grad()
def most_important_first_(giant: nn.Module, widths: Widths) -> int:
    """Give the original the most important channels of each group that is born and read within one block.

    Groups that a convolution in groups of several channels reads or writes keep theirs: there, groups are whole.

    Args:
        giant: at its own width.
        widths: what it remembers.

    Returns:
        How many of the original's channels are others now.
    """
    layout = widths.layout
    weights = dict(giant.named_parameters())
    importance: Counter[int] = Counter()
    for slot, classes in layout.wide.items():
        path, _, key = slot.tensor.rpartition(".")
        wide = weights.get(f"{path}.parametrizations.{key}.original".lstrip("."), weights.get(slot.tensor))
        if wide is not None and wide.ndim > 1 and _reads(layout, slot):
            sums = wide.abs().sum([d for d in range(wide.ndim) if d != slot.dim])
            for one, value in zip(classes, sums.tolist(), strict=True):
                importance[one] += value
    unit = dict(layout.unit)
    for number, space in enumerate(layout.spaces):
        if space.inner and not space.frozen and not _in_groups(layout, number):
            for classes in _alike(layout, number):
                steps = sorted(layout.unit[one] for one in classes)
                ranked = sorted(classes, key=lambda one: -importance[one])
                unit.update(zip(ranked, steps, strict=True))
    changed = sum(unit[one] < 0 <= before for one, before in layout.unit.items())
    if changed:
        move_own_(giant, widths, unit)
    return changed


def _reads(layout: WidthLayout, slot: Slot) -> bool:
    """Whether channels are read there, and not born."""
    return slot.dim >= 0 and all(block.slot != slot for space in layout.spaces for block in space.blocks)


def _in_groups(layout: WidthLayout, number: int) -> bool:
    """Whether a convolution in groups of several channels has channels of a group."""
    for name, (read, written) in layout.grouped.items():
        slots = [slot for slot in layout.wide if slot.tensor == name]
        homes = {layout.space.get(one) for slot in slots for one in layout.wide[slot]}
        if max(read, written) > 1 and number in homes:
            return True
    return False


def _alike(layout: WidthLayout, number: int) -> list[list[int]]:
    """The channels of a group, in lists of those that the same tensors have, equally often."""
    holders: dict[int, Counter[Slot]] = {one: Counter() for one, home in layout.space.items() if home == number}
    for slot, classes in layout.wide.items():
        for one in classes:
            if one in holders:
                holders[one][slot] += 1
    lists: dict[frozenset[tuple[Slot, int]], list[int]] = {}
    for one, seen in holders.items():
        lists.setdefault(frozenset(seen.items()), []).append(one)
    return list(lists.values())
