"""What int8 can give at best effort: the network in PyTorch, every value rounded to 255 steps of its own range."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nbcompile.core.layers import CONVOLUTIONS
from nbcompile.core.numerics import flatten

FIXED = {"sigmoid": (0.0, 1.0), "_softmax": (0.0, 1.0), "tanh": (-1.0, 1.0), "_log_softmax": (-16.0, 0.0)}
"""Ranges that TFLite prescribes, by the operator's name."""


def rounded(model: nn.Module, calibration: Tensor, x: Tensor) -> list[Tensor]:
    """The outputs for ``x``, with ranges from ``calibration``, and weights of 8 bits for each output channel.

    Each operator's result is rounded, where a device rounds once for a convolution and the clip behind it.
    """
    model = copy.deepcopy(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
                _round_weight(module)
        rounding = _Rounding()
        calibrated = rounding.of(calibration)
        with rounding:
            model(calibrated)
        rounding.measured()
        given = rounding.of(x)
        with rounding:
            return flatten(model(given))


def _round_weight(layer: nn.Module) -> None:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    axis = 1 if getattr(layer, "transposed", False) and layer.groups == 1 else 0
    others = [d for d in range(weight.ndim) if d != axis]
    step = weight.abs().amax(others, keepdim=True).clamp(min=1e-30) / 127
    weight.copy_((weight / step).round() * step)


class _Rounding(TorchDispatchMode):
    """Finds the range of every result, in the order in which they are computed; then rounds them."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges: list[tuple[float, float]] = []
        self.next: int | None = None

    def measured(self) -> None:
        """Round from now on."""
        self.next = 0

    def of(self, x: Tensor, fixed: tuple[float, float] | None = None) -> Tensor:
        if self.next is None:
            self.ranges.append(fixed or (min(float(x.min()), 0.0), max(float(x.max()), 0.0)))
            return x
        low, high = self.ranges[self.next]
        self.next += 1
        step = (high - low) / 255 or 1.0
        zero = round(-low / step)
        return ((x / step).round() + zero).clamp(0, 255).sub(zero) * step

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.rstrip("_")
        if name == "native_group_norm":
            return self._normed(*args[:3], groups=args[6], eps=args[7])
        if name == "native_batch_norm" and args[5]:  # instance norm: of its input's own statistics
            return self._normed(*args[:3], groups=args[0].shape[1], eps=args[7])
        if name == "silu":  # TFLite has no operator for it
            return self.of(args[0] * self.of(args[0].sigmoid(), FIXED["sigmoid"]))
        results = func(*args, **(kwargs or {}))
        if func.is_view:
            return results
        many: Sequence[Any] = results if isinstance(results, tuple | list) else [results]
        for y in many:
            if isinstance(y, Tensor) and y.is_floating_point() and y.numel():
                y.copy_(self.of(y, FIXED.get(name)))
        return results

    def _normed(self, x: Tensor, weight: Any, bias: Any, *, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """In the steps that TFLite has for a norm: mean, difference, mean of squares, product, factor, sum."""
        apart = x.reshape(x.shape[0], groups, -1)
        mean = self.of(apart.mean(-1, keepdim=True))
        centred = self.of(apart - mean)
        inverse = self.of((self.of(centred.square().mean(-1, keepdim=True)) + eps).rsqrt())
        y = self.of(centred * inverse).reshape(x.shape)
        of_channels = (1, -1, *[1] * (x.ndim - 2))
        y = y if weight is None else self.of(y * weight.view(of_channels))
        y = y if bias is None else self.of(y + bias.view(of_channels))
        return y, mean, inverse
