"""One map after another."""

from functools import lru_cache
from itertools import product
from math import gcd, prod
from typing import Any

import torch
from torch import Tensor

from nbcompile.core.algebra.groups import embed_groups, window_at
from nbcompile.core.algebra.maps import AffineMap, Geometry, NotExact

SHIFT_ROUNDING = 16
"""How far a shift may be from the value padded with and count as the same, in units of that value's own rounding."""


@lru_cache(maxsize=4096)  # of a chain every part is asked for, and most parts look alike
def composed(first: Geometry, second: Geometry, *, shift_fits: bool = False) -> Geometry:
    """What :func:`compose` would give, decided without numbers.

    Strides multiply; the kernel is the full convolution of both, of size ``k1 + (k2 - 1) * s1`` at dilation 1
    (kept as a dilation where the taps allow); unequal groups become their greatest common divisor.

    Args:
        first: applied first.
        second: reads what ``first`` gives.
        shift_fits: whether ``second`` pads with the very value that ``first`` makes of its own padding (zeros where
            it pads nothing): see :func:`shift_fits`. A transposed ``second`` pads with zeros.

    Raises:
        NotExact: if ``second`` pads a map that is not so there (R4, R5), or the pair is transposed as no one layer is.
    """
    if first.outputs != second.inputs:
        raise NotExact(f"the first layer gives {first.outputs} channels, the second reads {second.inputs}")
    if first.transposed or second.transposed:
        _refuse_transposed(first, second, shift_fits)
    else:
        _refuse_inner_border(first, second, shift_fits)
    steps = tuple(d * s for d, s in zip(second.dilation, first.stride, strict=True))
    sizes = zip(first.kernel, first.dilation, second.kernel, steps, strict=True)
    dilation = tuple(gcd(d1 if k1 > 1 else 0, step if k2 > 1 else 0) or 1 for k1, d1, k2, step in sizes)
    spans = zip(first.reach, second.reach, first.stride, dilation, strict=True)
    sides = zip(first.padding, second.padding, first.stride, strict=True)
    return Geometry(
        inputs=first.inputs,
        outputs=second.outputs,
        kernel=tuple((reach1 + s * reach2) // d + 1 for reach1, reach2, s, d in spans),
        stride=tuple(a * b for a, b in zip(first.stride, second.stride, strict=True)),
        padding=tuple((low1 + s * low2, high1 + s * high2) for (low1, high1), (low2, high2), s in sides),
        dilation=dilation,
        groups=gcd(first.groups, second.groups),
        bias=first.bias or second.bias,
        padding_mode=second.padding_mode if second.pads else first.padding_mode,
        transposed=first.transposed or second.transposed,
        output_padding=first.output_padding or second.output_padding,
        filled=first.filled,
    )


def compose(first: AffineMap, second: AffineMap) -> AffineMap:
    """The one map that equals ``second`` after ``first``.

    Raises:
        NotExact: as :func:`composed`, which decides.
    """
    plain = composed.__wrapped__  # torch.compile, which traces this, warns of caches
    whole = plain(first.geometry, second.geometry, shift_fits=_border_fits(first, second))
    return AffineMap.of(whole, _full_convolution(first, second, whole), carried(second, first.bias), first.pad_value)


def carried(m: AffineMap, shift: Tensor | None) -> Tensor | None:
    """What a constant input becomes where no border is near: bias plus the sum of the taps times ``shift``.

    Args:
        m: any map; of a transposed one this is the sum over the taps, whichever position they reach.
        shift: ``(C_in,)``; None means zeros.

    Returns:
        ``(C_out,)``, or None for zeros.
    """
    if shift is None:
        return m.bias
    shift = shift.to(m.weight.dtype)
    matrix = m.weight.flatten(2).sum(2) if prod(m.kernel) > 1 else m.weight.flatten(1)
    if m.groups == 1:
        return matrix @ shift if m.bias is None else torch.addmv(m.bias, matrix, shift)
    if m.groups == matrix.numel():
        factor = matrix.flatten()
        return factor * shift if m.bias is None else torch.addcmul(m.bias, factor, shift)
    blocks = matrix.reshape(m.groups, -1, matrix.shape[1])
    through = torch.einsum("goi,gi->go", blocks, shift.reshape(m.groups, -1)).flatten()
    return through if m.bias is None else through + m.bias


def shift_fits(shift: Tensor | None, value: Tensor | None) -> bool:
    """Whether ``value``, which a model pads with, is the ``shift`` that stands there: None means zeros.

    Zeros are met exactly; a computed value up to :data:`SHIFT_ROUNDING` roundings of its own dtype.
    """
    if shift is None or value is None:
        given = value if shift is None else shift
        return given is None or not bool(given.any())
    scale = torch.maximum(shift.abs().max(), value.abs().max())
    return bool((shift - value).abs().max() <= SHIFT_ROUNDING * torch.finfo(value.dtype).eps * scale)


def _refuse_inner_border(first: Geometry, second: Geometry, fits: bool) -> None:
    """Axis by axis: the first layer must carry the second one's padding through to its own input (R4, R5)."""
    # The second layer reads a ring that the first did not compute: its own padding. One layer computes that ring as all
    # else, from the input: so the first layer, on the ring around the input, must give just what the second pads with.
    padded = [axis for axis, sides in enumerate(second.padding) if any(sides)]
    if not padded:
        return
    mode = second.padding_mode
    if first.pads and first.padding_mode != mode:
        raise NotExact(f"the layers pad by '{first.padding_mode}' and by '{mode}', which no one layer does")
    if any(first.kernel[axis] > 1 for axis in padded):  # near the ring, it would read some of the input, too
        raise NotExact(
            f"the second layer pads by '{mode}' between two kernels {first.kernel} and {second.kernel}: "
            "the merged layer would differ at the border"
        )
    if mode == "zeros" and not fits and (first.filled or second.filled):
        raise NotExact(
            "the second layer pads with a value that is not what the first gives there: the merged layer would differ "
            "at the border"
        )
    if mode == "zeros" and not fits and first.bias:  # 1×1 of zeros is the bias, not zero
        raise NotExact(
            "the second layer pads with zeros but the first adds a bias: the merged layer would differ at the "
            "border; pad before the first layer instead"
        )
    # Reflected and repeated values stay in their order through a 1×1, but not through a stride or a ring of their own.
    if mode != "zeros" and any(first.stride[axis] > 1 or any(first.padding[axis]) for axis in padded):
        raise NotExact(
            f"the second layer pads by '{mode}' where the first strides or pads: "
            "the merged layer would differ at the border"
        )


def _refuse_transposed(first: Geometry, second: Geometry, fits: bool) -> None:
    # Of a transposed map every output position sums another set of taps; a pointwise one has no positions to disturb.
    if not (second if first.transposed else first).pointwise:
        raise NotExact("a transposed convolution merges only with a pointwise layer of stride 1 that pads nothing")
    if second.transposed and first.bias and not fits:
        raise NotExact(
            "the first layer adds a bias, of which the transposed convolution gives every position another share: "
            "no one bias equals that"
        )


def _border_fits(first: AffineMap, second: AffineMap) -> bool:
    """Whether what ``first`` makes of its own padding is what ``second`` pads with."""
    if not (second.pads or second.transposed):
        return False  # it pads nothing: nobody asks
    return shift_fits(carried(first, first.pad_value), second.pad_value)


def _full_convolution(first: AffineMap, second: AffineMap, whole: Geometry) -> Tensor:
    """The weight of ``whole``: every tap of ``second`` times every tap of ``first``, summed where they meet."""
    shape = (whole.outputs, whole.inputs // whole.groups, *whole.kernel)
    if prod(first.kernel) == 1 or prod(second.kernel) == 1:  # no two meet
        return _products(first, second.weight, second.groups).reshape(shape)
    weight = first.weight.new_zeros(shape)
    # Tap j of the second reads s * d * j of the first's positions further: so far apart its products lie in the whole.
    steps = [d * s // unit for d, s, unit in zip(second.dilation, first.stride, whole.dilation, strict=True)]
    holes = [d // unit for d, unit in zip(first.dilation, whole.dilation, strict=True)]
    for tap in product(*[range(k) for k in second.kernel]):
        at: tuple[Any, ...] = (slice(None), slice(None), *[slice(j, j + 1) for j in tap])
        window = weight[:, :, *window_at([j * s for j, s in zip(tap, steps, strict=True)], first.kernel, holes)]
        window += _products(first, second.weight[at], second.groups).reshape(window.shape)
    return weight


def _products(first: AffineMap, taps: Tensor, groups: int) -> Tensor:
    """Every tap of the second map times every one of the first, channels contracted group by group.

    Args:
        first: the first map.
        taps: those of the second, ``(outputs, inner // groups, *taps)``.
        groups: of the second map.

    Returns:
        ``(outputs, C_in // gcd, taps, taps of first)``, gcd of both groups.
    """
    if groups == taps.numel():  # per channel
        wide = torch.promote_types(taps.dtype, first.weight.dtype)
        if first.weight.dtype != wide:  # the copy is ours: half the time and memory of a product
            return first.weight.to(wide).mul_(taps)
        return taps * first.weight
    if first.groups == groups == 1 == taps.shape[2:].numel():
        return taps.flatten(1) @ first.weight.flatten(1)
    common = gcd(first.groups, groups)
    nested = common in (first.groups, groups)  # one map's groups lie whole within the other's
    rows = first.weight if nested else embed_groups(first.weight, first.groups, common)
    ours, theirs = (first.groups // common if nested else 1), groups // common
    inner = rows.shape[0] // (common * ours * theirs)
    left = taps.reshape(common, theirs, -1, ours, inner, taps.shape[2:].numel())
    right = rows.reshape(common, ours, theirs, inner, rows.shape[1], rows.shape[2:].numel())
    return torch.einsum("gboaht,gabhcu->gboactu", left, right).flatten(3, 4).flatten(0, 2)
