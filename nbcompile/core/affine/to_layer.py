"""From an affine map back to the one layer that computes it."""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nbcompile.core.algebra import AffineMap, Geometry, embed_groups
from nbcompile.core.layers import memory_format, stored_weight
from nbcompile.core.random_state import forked_rng

_CONVOLUTIONS: dict[int, type[_ConvNd]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[_ConvNd]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def why_no_one_layer(geometry: Geometry) -> str | None:
    """Why no one of torch's layers has this geometry, or None."""
    if geometry.filled:
        return "the result pads with a value that is not zero, which no one layer does"
    if geometry.pads and _padding(geometry) is None:
        return f"the result pads its two sides by different amounts ({geometry.padding}), which no one layer does"
    if geometry.transposed and any(low != high for low, high in geometry.padding):
        return f"the result crops its two sides by different amounts ({geometry.padding}), which no one layer does"
    more = zip(geometry.output_padding, geometry.stride, geometry.dilation, strict=False)
    if geometry.transposed and any(beyond >= max(stride, dilation) for beyond, stride, dilation in more):
        return f"the result adds {geometry.output_padding} positions at the end, more than torch's layer can"
    return None


def why_rounding_loses(m: AffineMap, layer: nn.Module) -> str | None:
    """Why ``layer``, which is ``m`` rounded, is not it up to its dtype's own rounding, or None."""
    for exact, rounded in ((m.weight, cast(Tensor, layer.weight)), (m.bias, cast(Tensor | None, layer.bias))):
        if exact is None or rounded is None:
            continue
        kind = str(rounded.dtype).removeprefix("torch.")
        if not exact.numel():
            continue
        low, high = (float(v) for v in rounded.detach().aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            return f"the merged weights would not be finite in {kind}"
        if max(-low, high) < torch.finfo(rounded.dtype).tiny and bool(exact.any()):
            return f"the merged weights would be too small for {kind}"
    return None


def to_layer(m: AffineMap, like: Tensor) -> nn.Module:
    """The layer that computes ``m``, in eval mode.

    Args:
        m: a map that one layer can be; its numbers are rounded to the dtype of ``like``, once.
        like: a weight; gives dtype, device, memory format, and whether gradients are wanted.
    """
    g = m.geometry
    layer = _hollow(g)
    exact = stored_weight(m) if g.axes else embed_groups(m.weight, m.groups, 1)
    # A fresh tensor: the strides that a product leaves on a 1×1 kernel can say channels-last by chance.
    weight = torch.empty(exact.shape, dtype=like.dtype, device=like.device, memory_format=memory_format(like))
    layer.weight = nn.Parameter(weight.copy_(exact), like.requires_grad)
    if m.bias is not None:
        layer.bias = nn.Parameter(m.bias.to(like.device, like.dtype).clone(), like.requires_grad)
    return layer.eval()


def _hollow(g: Geometry) -> nn.Module:
    """A layer of this geometry, made small: torch would fill the whole weight with random numbers first."""
    with forked_rng():  # nobody's random numbers are used up
        if not g.axes:
            linear = nn.Linear(1, 1, bias=g.bias)
            linear.in_features, linear.out_features = g.inputs, g.outputs
            return linear
        options: dict[str, Any] = {"padding": _padding(g), "padding_mode": g.padding_mode}
        if g.transposed:
            options = {"padding": tuple(low for low, _ in g.padding), "output_padding": g.output_padding}
        cls: Any = (_TRANSPOSED if g.transposed else _CONVOLUTIONS)[g.axes]
        layer = cls(
            g.groups, g.groups, g.kernel, g.stride, dilation=g.dilation, groups=g.groups, bias=g.bias, **options
        )
        layer.in_channels, layer.out_channels = g.inputs, g.outputs
        return cast(nn.Module, layer)


def _padding(g: Geometry) -> tuple[int, ...] | str | None:
    """As torch's layers take it; None for sides that they cannot pad by."""
    if all(low == high for low, high in g.padding):
        return tuple(low for low, _ in g.padding)
    same = tuple((reach // 2, reach - reach // 2) for reach in g.reach)
    return "same" if g.padding == same and all(s == 1 for s in g.stride) else None
