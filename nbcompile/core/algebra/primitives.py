"""The affine maps that are no convolution with a weight of its own."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from nbcompile.core.algebra.maps import AffineMap, NotExact


def per_channel(scale: Tensor, shift: Tensor | None, axes: int) -> AffineMap:
    """``y = scale * x + shift`` per channel, as a depthwise map of kernel 1.

    Args:
        scale: ``(C,)``, no unit.
        shift: ``(C,)``, in units of the output, or None.
        axes: number of spatial axes.
    """
    ones = (1,) * axes
    return AffineMap(scale.reshape(-1, 1, *ones), shift, ones, ((0, 0),) * axes, ones, groups=scale.numel())


def frozen_norm(
    mean: Tensor, var: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, axes: int
) -> AffineMap:
    """A batch norm with fixed statistics: ``y = (x - mean) / sqrt(var + eps) * gamma + beta`` (R1).

    Args:
        mean: running mean, ``(C,)``, in units of the input.
        var: running variance, ``(C,)``, in those units squared.
        gamma: scale, ``(C,)``, no unit; None means ones.
        beta: shift, ``(C,)``, in units of the output; None means zeros.
        eps: added to ``var``.
        axes: number of spatial axes.

    Source: Jacob et al. 2018, arXiv 1712.05877, sec. 3.2.
    """
    scale = torch.rsqrt(var + eps)
    scale = scale if gamma is None else scale * gamma
    shift = -mean * scale if beta is None else torch.addcmul(beta, mean, scale, value=-1)
    return per_channel(scale, shift, axes)


def identity(channels: int, axes: int, like: Tensor) -> AffineMap:
    """``y = x``, in the dtype and on the device of ``like``."""
    return per_channel(like.new_ones(channels), None, axes)


def average_pool(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[tuple[int, int]], channels: int, like: Tensor
) -> AffineMap:
    """The mean over a window, padded zeros counted (``count_include_pad``), sizes rounded down (no ``ceil_mode``) (R8).

    Args:
        kernel: window per spatial axis.
        stride: per spatial axis.
        padding: ``(low, high)`` per spatial axis.
        channels: number of channels.
        like: gives dtype and device.
    """
    weight = like.new_full((channels, 1, *kernel), 1 / prod(kernel))
    return AffineMap(weight, None, tuple(stride), tuple(padding), (1,) * len(kernel), groups=channels)


def padding_map(
    padding: Sequence[tuple[int, int]], channels: int, like: Tensor, mode: str = "zeros", value: Tensor | None = None
) -> AffineMap:
    """Explicit padding: the identity, which reads outside its input.

    Args:
        padding: ``(low, high)`` per spatial axis, >= 0.
        channels: number of channels.
        like: gives dtype and device.
        mode: as of :class:`AffineMap`.
        value: ``(C,)``, what ``zeros`` pads with instead, in the dtype the model computed it in.

    Raises:
        NotExact: if ``value`` is not finite: zero taps would not keep it out of a sum.
    """
    axes = len(padding)
    if value is not None and not bool(value.isfinite().all()):
        raise NotExact("it pads with a value that is not finite")
    if not any(low or high for low, high in padding):
        return identity(channels, axes, like)
    ones = (1,) * axes
    weight = like.new_ones(channels, 1, *ones)
    return AffineMap(weight, None, ones, tuple(padding), ones, channels, mode, pad_value=value)


def selection(indices: Sequence[int], inputs: int, axes: int, like: Tensor) -> AffineMap:
    """The channels ``indices`` of ``inputs``, in that order, as a dense map of kernel 1."""
    ones = (1,) * axes
    rows = torch.eye(inputs, dtype=like.dtype, device=like.device)[list(indices)]
    return AffineMap(rows.reshape(*rows.shape, *ones), None, ones, ((0, 0),) * axes, ones)
