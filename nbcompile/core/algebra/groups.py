"""Channel groups: a grouped kernel is one of fewer groups, block-diagonal among zeros."""

from collections.abc import Sequence
from dataclasses import replace
from math import gcd

import torch
from torch import Tensor

from nbcompile.core.algebra.maps import AffineMap


def window_at(starts: Sequence[int], sizes: Sequence[int], steps: Sequence[int]) -> tuple[slice, ...]:
    """The slices, one per axis, of ``sizes`` taps from ``starts`` on, ``steps`` apart: of no account for a lone tap."""
    axes = zip(starts, sizes, steps, strict=True)
    return tuple(slice(start, start + (size - 1) * step + 1, max(step, 1)) for start, size, step in axes)


def diagonal_blocks(weight: Tensor, groups: int, more: int) -> Tensor:
    """A view of the only entries of ``weight`` that a map of ``more`` groups has.

    Args:
        weight: ``(C_out, C_in // groups, *kernel)``.
        groups: groups of ``weight``.
        more: a multiple of ``groups`` that divides both channel counts.

    Returns:
        ``(groups, more // groups, C_out // more, C_in // more, *kernel)``.
    """
    blocks = more // groups
    rows, columns = weight.shape[0] // more, weight.shape[1] // blocks
    tiled = weight.view(groups, blocks, rows, blocks, columns, *weight.shape[2:])
    return tiled.diagonal(dim1=1, dim2=3).movedim(-1, 1)


def embed_groups(weight: Tensor, groups: int, fewer: int) -> Tensor:
    """The same map with fewer groups: each row's inputs are set block-diagonally among zeros (R7).

    Args:
        weight: ``(C_out, C_in // groups, *kernel)``.
        groups: groups of ``weight``.
        fewer: a divisor of ``groups``.

    Returns:
        ``(C_out, C_in // fewer, *kernel)``.
    """
    if groups == fewer:
        return weight
    rows, columns = weight.shape[:2]
    out = weight.new_zeros(rows, columns * (groups // fewer), *weight.shape[2:])
    blocks = diagonal_blocks(out, fewer, groups)
    blocks += weight.reshape(blocks.shape)
    return out


def regrouped(m: AffineMap) -> AffineMap:
    """The same map with the most groups whose blocks hold every entry that is not exactly zero."""
    outputs, inputs = m.weight.shape[0], m.weight.shape[1] * m.groups
    groups = _most_groups(m.weight, m.groups, gcd(outputs, inputs))
    if groups == m.groups:
        return m
    common = gcd(groups, m.groups)
    weight = diagonal_blocks(embed_groups(m.weight, m.groups, common), common, groups).flatten(0, 2)
    return replace(m, weight=weight.contiguous(), groups=groups)


def _most_groups(weight: Tensor, groups: int, limit: int) -> int:
    """The largest divisor of ``limit`` that leaves nothing of ``weight`` out."""
    outputs, columns = weight.shape[:2]
    used = weight.flatten(2).any(2) if weight.ndim > 2 else weight != 0
    row = torch.arange(outputs, device=weight.device)[used.any(1)]
    used = used[row].byte()
    offset = row // (outputs // groups) * columns
    first, last = offset + used.argmax(1), offset + columns - 1 - used.flip(1).argmax(1)
    for more in range(limit, 1, -1):
        if limit % more == 0:
            block = row // (outputs // more)
            width = columns * groups // more
            if bool(((first // width == block) & (last // width == block)).all()):
                return more
    return 1
