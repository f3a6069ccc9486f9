"""Where the original's channels are among those of the widest network: found by running both.

The network is run with tensors of its own sizes and of the widest, on ``meta``, and channels are followed through both
runs. A channel of the original is given, in order, a wide one of its block that is read by the same tensors: so halves
of a chunk stay in their halves. What a layer reads then says where its old inputs are among the wide ones.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nbcompile.core.width.follow import Follow, Kinds, compact
from nbcompile.core.width.labels import GROUPS, NO_CHANNEL, Block, Slot, distinct
from nbcompile.core.width.layout import NoLayoutError, WidthLayout, check_groups
from nbcompile.core.width.spaces import Space, in_order, occurrence

_NONE = -2


def lay_out(base: Follow, seen: Follow, spaces: list[Space], steps: Sequence[int]) -> WidthLayout:
    """The layout of the widest network.

    Args:
        base: the run at the original's width.
        seen: the one at the widest.
        spaces: of ``base``.
        steps: how much each grows.

    Raises:
        NoLayoutError: if there is none.
    """
    matching = _Matching(base, seen)
    for number, (space, k) in enumerate(zip(spaces, steps, strict=True)):
        for block in space.blocks:
            matching.block(block, number, space.units, k)
    wide = {slot: seen.labels.roots(labels) for slot, labels in _all_slots(seen)}
    own, wrong = {}, []
    for slot, labels in _all_slots(base):
        places = _places(matching.given[base.labels.roots(labels)], wide[slot])
        if places is None or not torch.equal(places, places.sort()[0]):
            wrong.append(slot)
        else:
            own[slot] = places
    if wrong := matching.wrong + wrong:
        raise NoLayoutError(f"'{wrong[0].tensor}' does not read there what it reads, or in another order", wrong)
    matching.check_values()
    layout = WidthLayout(spaces, wide, matching.unit, matching.space, own, base.grouped)
    check_groups(layout, [0] * len(steps))
    return layout


def _all_slots(follow: Follow) -> Iterator[tuple[Slot, Tensor]]:
    yield from ((slot, block.labels()) for slot, block in follow.labels.blocks.items())
    yield from ((slot, labels) for slot, labels in follow.read.items() if slot not in follow.labels.blocks)


def _places(wanted: Tensor, there: Tensor) -> Tensor | None:
    """Where each of ``wanted`` is: the first where it is wanted first, and so on; None where there are too few."""
    many = len(wanted) + len(there)
    key, keys = wanted * many + occurrence(wanted), there * many + occurrence(there)
    known, order = keys.sort()
    at = torch.searchsorted(known, key).clamp_max(len(known) - 1)
    return order[at] if torch.equal(known[at], key) else None


class _Matching:
    """Gives channels of the original to those of a wide run.

    Attributes:
        given: ``(n,)``, by root of the original's run, the wide one.
        unit: ``(m,)``, by root of the wide run, the step in which it comes.
        space: ``(m,)``, the space that it is of.
        wrong: slots of blocks that cannot be matched.
    """

    def __init__(self, base: Follow, seen: Follow) -> None:
        known: Kinds = {}
        self._old, self._new = base.kinds(known), seen.kinds(known)
        self.base, self.seen = base, seen
        self.given = torch.full_like(self._old, _NONE)
        self.given[NO_CHANNEL] = NO_CHANNEL
        self.unit, self.space = torch.full_like(self._new, _NONE), torch.zeros_like(self._new)
        self.unit[NO_CHANNEL] = -1
        self.wrong: list[Slot] = []

    def block(self, block: Block, number: int, units: int, k: int) -> None:
        """Of the space of that number, which grows by ``k`` steps, each of one of its ``units``."""
        old = self.base.labels.roots(block.labels())
        new = self.seen.labels.roots(self.seen.labels.blocks[block.slot].labels())
        if not k:
            if not self._same(old, new, number):
                self.wrong.append(block.slot)
            return
        if not in_order(new):
            self.wrong.append(block.slot)
            return
        old, new = (roots[occurrence(roots) == 0] for roots in (old, new))
        self.space[new] = number
        old, new = old[self.given[old] == _NONE], new[self.unit[new] == _NONE]
        group = self.base.grouped.get(block.slot.tensor)
        if group is not None and block.slot.dim == 0:
            good = self._in_groups(block, group)
        else:
            good = all(
                self._in_order(old[self._old[old] == kind], new[self._new[new] == kind], units, k)
                for kind in distinct(torch.cat([self._old[old], self._new[new]])).tolist()
            )
        if not good:
            self.wrong.append(block.slot)

    def _same(self, old: Tensor, new: Tensor, number: int) -> bool:
        """What keeps its number is the same, position by position."""
        if len(old) != len(new):
            return False
        free = self.given[old] == _NONE
        self.given[old[free]] = new[free]
        self.space[new] = number
        self.unit[new[self.unit[new] == _NONE]] = -1
        return torch.equal(self.given[old], new)

    def _in_order(self, old: Tensor, new: Tensor, units: int, k: int) -> bool:
        """The first are the original's; then so many in each step as there are in each of the original's units."""
        more = len(old) // units
        if len(new) != len(old) + k * more or len(old) % units:
            return False
        self.given[old], self.unit[new[: len(old)]] = new[: len(old)], -1
        if k:
            self.unit[new[len(old) :]] = torch.arange(k, device="cpu").repeat_interleave(more)
        return True

    def _in_groups(self, block: Block, group: tuple[int, int]) -> bool:
        """Outputs of a group are the original's, or come in a step, where its inputs are or do."""
        (read, written), slot = group, Slot(block.slot.tensor, GROUPS)
        old, new = (run.labels.roots(run.labels.blocks[block.slot].labels()).view(-1, written) for run in self._runs)
        old_in, new_in = (run.labels.roots(run.read[slot]).view(-1, read) for run in self._runs)
        if len(old) != len(old_in) or len(new) != len(new_in):
            return False
        units = self.unit[new_in][:, :1].expand_as(new)
        places = _places(self.given[old_in][:, 0], new_in[:, 0])
        if places is None:
            return False
        free = self.unit[new] == _NONE
        self.unit[new[free]] = units[free]
        free = self.given[old] == _NONE
        self.given[old[free]] = new[places][free]
        return True

    def check_values(self) -> None:
        """Of each value, the original's channels at the widest are those that it has at the original's width, in order.

        Labels of values that are added are the same, whichever of them a layer reads: what it reads does not tell
        whether half of one has become more than half.

        Raises:
            NoLayoutError: naming the spaces of a value of which that is not so.
        """
        for (function, before), (same, after) in zip(self.base.calls, self.seen.calls, strict=False):
            if function is not same:
                return
            for old, new in zip(tree_leaves(before), tree_leaves(after), strict=False):
                roots, wide = self.base.of(old), self.seen.of(new)
                if roots is None or wide is None:
                    continue
                roots, wide = compact(roots).flatten(), compact(wide).flatten()
                if not torch.equal(self.given[roots], wide[self.unit[wide] < 0]):
                    name = getattr(function, "__name__", "an operator")
                    slots = [*self.base.labels.homes(roots)]
                    raise NoLayoutError(f"'{name}' gives other channels at other widths", slots)

    @property
    def _runs(self) -> tuple[Follow, Follow]:
        return self.base, self.seen
