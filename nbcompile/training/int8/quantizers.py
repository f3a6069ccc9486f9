"""Numbers rounded as an int8 file rounds them, with gradients that pass.

The step of activations is learnt. Source: Esser et al. 2020 (LSQ), arXiv:1902.08153, eq. 1 to 3 and sec. 2.2; the
asymmetric form has a zero point that stays. Weights and biases follow the rule of the exporter's quantizer at every
step, their gradient goes straight through (Bengio et al. 2013, arXiv:1308.3432).
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

LOWEST, HIGHEST = -128, 127
"""Of activations; weights are symmetric."""

_NUDGE = 1e-3
"""Steps, more than float32 loses of an average."""

FARTHEST = 8.0
"""How many times smaller or larger than it was a step may become: kernels have no form for scales too far apart."""


class LearnedStep(nn.Module):
    """The scale of one activation, or of several that share it.

    Args:
        size: what 1 stands for, in the file as it would be without training.
        zero: the integer that stands for 0.
        learned: whether it may change; else it stays what TFLite prescribes.
    """

    def __init__(self, size: float, zero: int, learned: bool) -> None:
        super().__init__()
        self.zero = zero
        self.bounds = size / FARTHEST, size * FARTHEST
        self.size = nn.Parameter(torch.tensor(float(size)), requires_grad=learned)

    def used(self) -> Tensor:
        """Its size, without a gradient."""
        return self.size.detach().clamp(*self.bounds)

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest number that it can hold."""
        size = float(self.used())
        return (LOWEST - self.zero) * size, (HIGHEST - self.zero) * size


class Quantizer(nn.Module):
    """Rounds an activation.

    Args:
        step: its scale; other quantizers may share it.
        away: whether what lies half-way between two integers goes away from 0, as the kernels of averages do.
    """

    def __init__(self, step: LearnedStep, away: bool = False) -> None:
        super().__init__()
        self.step, self.away = step, away

    def forward(self, x: Tensor) -> Tensor:
        """``x`` as the file holds it."""
        if self.away:
            size = self.step.used()
            x = x + (x + size * self.step.zero).detach().sign() * size * _NUDGE
        rounded: Tensor = _Rounded.apply(x, self.step.size, self.step)
        return rounded


class _Rounded(torch.autograd.Function):
    """LSQ: gradients of a clipped and rounded value, for the value and for its step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: Tensor, step: LearnedStep) -> Tensor:
        s = step.used()
        ctx.save_for_backward(x, s)
        ctx.zero = step.zero
        return torch.fake_quantize_per_tensor_affine(x, float(s), step.zero, LOWEST, HIGHEST)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (gradient,) = gradients
        x, s = cast(tuple[Tensor, Tensor], ctx.saved_tensors)
        v = x / s
        low, high = LOWEST - ctx.zero, HIGHEST - ctx.zero
        inside = (v > low) & (v < high)
        of_step = None
        if ctx.needs_input_grad[1]:
            features = x.numel() / len(x)
            scale = 1 / math.sqrt(features * HIGHEST)
            of_step = (gradient * torch.where(inside, v.round() - v, v.clamp(low, high))).sum().reshape(s.shape) * scale
        return gradient * inside, of_step, None


class QuantizedLayer(nn.Module):
    """A convolution or linear layer with weights in int8 and a bias in int32.

    Args:
        layer: with float weights, which are trained.
        source: the scale of what it reads; None where that is not known: its bias is not rounded then.
        per_channel: whether weights have a scale per output channel.
    """

    def __init__(self, layer: nn.Module, source: LearnedStep | None, per_channel: bool) -> None:
        super().__init__()
        self.layer = layer
        self.source = source
        self.per_channel = per_channel

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives with rounded parameters."""
        weight, bias = cast(Tensor, self.layer.weight), cast(Tensor | None, self.layer.bias)
        scale = self.scale(weight)
        used = {"weight": _straight(weight, scale)}
        if bias is not None:
            used["bias"] = bias
            if self.source is not None:
                flat = scale.flatten().expand(len(bias)) * self.source.used()
                used["bias"] = _straight(bias, flat)
        return cast(Tensor, torch.func.functional_call(self.layer, used, (x,)))

    @torch.no_grad()
    def scale(self, weight: Tensor) -> Tensor:
        """What 1 stands for in its integers, so that it can be multiplied with ``weight``."""
        axis = 1 if isinstance(self.layer, _ConvTransposeNd) else 0
        others = [i for i in range(weight.ndim) if not self.per_channel or i != axis]
        largest = weight.abs().amax(others, keepdim=True)
        return torch.where(largest > 0, largest / HIGHEST, torch.ones_like(largest))


def _straight(x: Tensor, scale: Tensor) -> Tensor:
    """``x`` rounded to multiples of ``scale``; the gradient is that of ``x``."""
    return x + ((x / scale).round() * scale - x).detach()
