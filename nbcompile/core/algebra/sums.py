"""Maps side by side over one input: their sum, and the stack of their output channels."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from itertools import accumulate
from math import gcd
from typing import Any

import torch
from torch import Tensor

from nbcompile.core.algebra.composition import shift_fits
from nbcompile.core.algebra.groups import diagonal_blocks, window_at
from nbcompile.core.algebra.maps import AffineMap, Geometry, NotExact


def added(*branches: Geometry, fills_agree: bool = False) -> Geometry:
    """What :func:`add` would give, decided without numbers.

    Smaller kernels are embedded in the larger, groups become their greatest common divisor, biases add.

    Args:
        *branches: at least one.
        fills_agree: whether all that pad, pad with the same values; not asked where they pad with zeros.

    Raises:
        NotExact: if strides differ, the output sizes would, or the borders are padded in different ways.
    """
    _refuse_unequal("{} output channels", (m.outputs for m in branches))
    return replace(_aligned(branches, fills_agree), groups=gcd(*[m.groups for m in branches]))


def add(*branches: AffineMap, overwrite: bool = False) -> AffineMap:
    """The one map that equals the sum of parallel ones (R2).

    Args:
        *branches: at least one.
        overwrite: whether the result may take the memory of a branch.

    Raises:
        NotExact: as :func:`added`, which decides.
    """
    whole = added(*[m.geometry for m in branches], fills_agree=_fills_agree(branches))
    filling = [(m.kernel, m.groups) == (whole.kernel, whole.groups) for m in branches]
    base = filling.index(True) if any(filling) else None
    weight = _zeros(whole, branches) if base is None else branches[base].weight
    if base is not None and not overwrite:
        weight = weight.clone()
    for position, m in enumerate(branches):
        if position != base:
            _place(m, weight, whole)
    biases = [m.bias for m in branches if m.bias is not None]
    return AffineMap.of(whole, weight, reduce(torch.add, biases) if biases else None, _fill(branches))


def concatenated(*branches: Geometry, fills_agree: bool = False) -> Geometry:
    """What :func:`concatenate` would give: a map of one group; see :func:`added`."""
    return replace(_aligned(branches, fills_agree), outputs=sum(m.outputs for m in branches), groups=1)


def concatenate(*branches: AffineMap) -> AffineMap:
    """The one map whose output channels are those of the branches, one after another, in one group.

    Raises:
        NotExact: as :func:`add`, but for the numbers of output channels, which may differ.
    """
    whole = concatenated(*[m.geometry for m in branches], fills_agree=_fills_agree(branches))
    weight = _zeros(whole, branches)
    outputs = [m.weight.shape[0] for m in branches]
    for m, end in zip(branches, accumulate(outputs), strict=True):
        _place(m, weight[end - m.weight.shape[0] : end], whole)
    biases = [m.weight.new_zeros(n) if m.bias is None else m.bias for m, n in zip(branches, outputs, strict=True)]
    return AffineMap.of(whole, weight, torch.cat(biases) if whole.bias else None, _fill(branches))


def _aligned(branches: Sequence[Geometry], fills_agree: bool) -> Geometry:
    """The geometry whose kernel holds every branch's, tap on tap; its outputs and groups are the first one's."""
    _refuse_different(branches, fills_agree)
    # All kernels are laid on one grid of taps: its unit is what divides every dilation and every distance between first
    # taps, its ends are the outermost taps of any branch. What a smaller kernel pads less, it leaves as zero taps.
    first = branches[0]
    dilation, kernel, padding, beyond = [], [], [], []
    for axis, slack in enumerate(_slack(first)):
        lows = [m.padding[axis][0] for m in branches]
        steps = [m.dilation[axis] if m.kernel[axis] > 1 else 0 for m in branches]
        unit = gcd(*steps, *[lows[0] - other for other in lows]) or 1
        low, end = max(lows), max(m.reach[axis] - m.padding[axis][0] for m in branches)
        high = end + slack
        dilation.append(unit)
        kernel.append((low + end) // unit + 1)
        padding.append((low, max(low, high) if first.transposed else high))
        beyond.append(padding[-1][1] - high)
    padders = [m for m in branches if m.pads]
    return replace(
        first,
        kernel=tuple(kernel),
        padding=tuple(padding),
        dilation=tuple(dilation),
        bias=any(m.bias for m in branches),
        padding_mode=padders[0].padding_mode if padders else "zeros",
        output_padding=tuple(beyond) if first.transposed else (),
        filled=any(m.filled for m in branches),
    )


def _slack(m: Geometry) -> tuple[int, ...]:
    """Padding on both sides over the reach, per axis: what fixes the output size of a given stride."""
    beyond = m.output_padding or (0,) * m.axes
    return tuple(low + high - reach - more for (low, high), reach, more in zip(m.padding, m.reach, beyond, strict=True))


def _refuse_different(branches: Sequence[Geometry], fills_agree: bool) -> None:
    _refuse_unequal("{} input channels", (m.inputs for m in branches))
    _refuse_unequal("strides {}", (m.stride for m in branches))
    if len({m.transposed for m in branches}) > 1:
        raise NotExact("one branch is a transposed convolution, the other is not")
    if len({_slack(m) for m in branches}) > 1:
        raise NotExact("the branches give maps of different sizes")
    # A branch that pads nothing reads only the input, and zero taps of it in the ring: any mode suits it.
    padders = [m for m in branches if m.pads]
    modes = sorted({m.padding_mode for m in padders})
    if len(modes) > 1:
        raise NotExact(f"one branch pads by '{modes[0]}', the other by '{modes[1]}'")
    if len(padders) > 1 and any(m.filled for m in padders) and not fills_agree:
        raise NotExact("the branches pad with different values")


def _refuse_unequal(what: str, values: Iterable[Any]) -> None:
    different = list(dict.fromkeys(values))
    if len(different) > 1:
        raise NotExact("the branches have " + what.format(f"{different[0]} and {different[1]}"))


def _fill(branches: Sequence[AffineMap]) -> Tensor | None:
    return next((m.pad_value for m in branches if m.pad_value is not None), None)


def _fills_agree(branches: Sequence[AffineMap]) -> bool:
    fill = _fill(branches)
    return fill is None or all(shift_fits(m.pad_value, fill) for m in branches if m.pads)


def _zeros(whole: Geometry, branches: Sequence[AffineMap]) -> Tensor:
    return branches[0].weight.new_zeros(whole.outputs, whole.inputs // whole.groups, *whole.kernel)


def _place(m: AffineMap, rows: Tensor, whole: Geometry) -> None:
    """Add ``m``'s kernel to ``rows`` of the kernel of ``whole``, in place and only where ``m`` has taps."""
    sides = zip(whole.padding, m.padding, whole.dilation, strict=True)
    starts = [(low - ours) // unit for (low, _), (ours, _), unit in sides]
    steps = [ours // unit for ours, unit in zip(m.dilation, whole.dilation, strict=True)]
    blocks = diagonal_blocks(rows[:, :, *window_at(starts, m.kernel, steps)], whole.groups, m.groups)
    blocks += m.weight.reshape(blocks.shape)
