"""A 1×1 convolution as a batched matrix product, where that is faster: large feature maps on a CPU.

A convolution's kernels want another layout; for few channels and many pixels the copies take longer than the sums.
"""

from typing import cast

import torch
from torch import Tensor, nn

from nbcompile.core.layers import why_no_layer

LARGE = 256
"""Pixels of a feature map from which on the product is faster; one thread of an AMD EPYC, 8 to 336 channels."""

POINTWISE = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def reads_one_pixel(layer: nn.Module) -> bool:
    """Whether ``layer`` is a 1×1 convolution without stride and padding that does what its class does, unwatched."""
    return type(layer) in POINTWISE and why_no_layer(layer) is None and _is_one_pixel(cast(nn.Conv2d, layer))


def is_factor(conv: nn.Conv2d) -> bool:
    """Whether a 1×1 convolution multiplies every channel by a number, and does nothing else."""
    return conv.groups == conv.in_channels == conv.out_channels and conv.bias is None


def _is_one_pixel(conv: nn.Conv2d) -> bool:
    one = all(value == 1 for value in (*conv.kernel_size, *conv.stride))
    return one and all(value == 0 for value in conv.padding)


def pointwise_product(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer`` of ``x``, as a matrix product where that is faster; only for eager mode on a CPU."""
    pixels = x.numel() // max(1, x.shape[0] * x.shape[1])
    if pixels < LARGE or not x.is_contiguous() or torch.is_autocast_enabled("cpu") or not reads_one_pixel(layer):
        return cast(Tensor, layer(x))
    conv = cast(nn.Conv2d, layer)
    fits = x.dtype == conv.weight.dtype and x.ndim == conv.weight.ndim and x.shape[1] == conv.in_channels
    if conv.groups != 1 or not fits:
        return cast(Tensor, layer(x))
    weight = conv.weight.flatten(1).expand(len(x), -1, -1)
    y = x.flatten(2)
    y = torch.bmm(weight, y) if conv.bias is None else torch.baddbmm(conv.bias[:, None], weight, y)
    return y.view(*y.shape[:2], *x.shape[2:])


def as_product(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer`` of ``x`` for ``torch.compile``, which fuses a product with what is around it, but no convolution."""
    if type(layer) not in POINTWISE or layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
        return cast(Tensor, layer(x))
    conv = cast(nn.Conv2d, layer)
    if not (is_factor(conv) and _is_one_pixel(conv)):
        return cast(Tensor, layer(x))
    return x * conv.weight[:, 0].to(x.dtype)
