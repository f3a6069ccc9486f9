"""Which channels of a giant in width are the original's: the most important ones.

Source: NetAug's released training code, which sorts the channels of inverted residuals at the start of an epoch by the
sum of the absolute weights that read them. There weights are moved, and the optimiser's momentum stays behind; here the
index of the original's channels is another one, and nothing moves.
"""

from collections import Counter

import torch
from torch import Tensor, nn

from nbcompile.core.width.labels import NO_CHANNEL, Slot
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
    importance = torch.zeros(len(layout.unit), dtype=torch.float64)
    weights = dict(giant.named_parameters())
    for slot, classes in layout.wide.items():
        path, _, key = slot.tensor.rpartition(".")
        wide = weights.get(f"{path}.parametrizations.{key}.original".lstrip("."), weights.get(slot.tensor))
        if wide is not None and wide.ndim > 1 and _reads(layout, slot):
            sums = wide.abs().sum([d for d in range(wide.ndim) if d != slot.dim])
            importance.index_add_(0, classes, sums.to(importance))
    unit = layout.unit.clone()
    for number, space in enumerate(layout.spaces):
        if space.inner and not space.frozen and not _in_groups(layout, number):
            for classes in _alike(layout, number):
                unit[classes[importance[classes].argsort(descending=True, stable=True)]] = unit[classes].sort()[0]
    changed = int(((unit < 0) & (layout.unit >= 0)).sum())
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
        if max(read, written) > 1 and any(bool((layout.space[layout.wide[slot]] == number).any()) for slot in slots):
            return True
    return False


def _alike(layout: WidthLayout, number: int) -> list[Tensor]:
    """The channels of a group, in lists of those that the same tensors have, equally often."""
    holders: dict[int, Counter[Slot]] = {}
    for slot, classes in layout.wide.items():
        for one in classes[(layout.space[classes] == number) & (classes != NO_CHANNEL)].tolist():
            holders.setdefault(one, Counter())[slot] += 1
    lists: dict[frozenset[tuple[Slot, int]], list[int]] = {}
    for one, seen in holders.items():
        lists.setdefault(frozenset(seen.items()), []).append(one)
    return [torch.tensor(sorted(classes)) for classes in lists.values()]
