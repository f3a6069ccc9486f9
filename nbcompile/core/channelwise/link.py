"""One step of a chain: a factor a channel and a batch norm, which are one scaled norm, and an activation.

With mean ``m`` and variance ``v`` of what arrives, a norm behind a factor ``w`` sees ``w * m`` and ``w**2 * v``. With
``r = (w**2 * v + eps) ** -0.5`` it gives

    y = (x - m) * (w * r) * gain + bias

That is the norm of ``x`` with ``w * r`` for one over its deviation, and so are its gradients. The one of ``w`` is what
``eps`` leaves of it: ``dL/dw = eps * r**2 * gain * dL/dgain / w``.

Source: ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from nbcompile.core.activations import Activation

_WIDER = {torch.bfloat16: torch.float32}


@dataclass(frozen=True, eq=False)
class Link:
    """What a step is made of.

    Attributes:
        factor: one number a channel, none of them 0, in any shape; None for 1.
        norm: in its mode, with its statistics, which training updates.
        activation: None for none.
    """

    factor: Tensor | None
    norm: _BatchNorm
    activation: Activation | None

    @property
    def batch(self) -> bool:
        """Whether it normalises by the statistics of the batch."""
        return self.norm.training or self.norm.running_mean is None

    @property
    def weights(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Factor, gain and bias, ``(C,)`` each."""
        factor = None if self.factor is None else self.factor.flatten()
        return factor, cast("Tensor | None", self.norm.weight), cast("Tensor | None", self.norm.bias)


@dataclass(eq=False)
class LinkCall:
    """A link's numbers in one call, for all channels or some; feature maps are ``(N, C, values)``.

    Attributes:
        link: it.
        factor: ``(C,)``, or None.
        gain: of the norm, ``(C,)``, or None.
        bias: of the norm, ``(C,)``, or None.
        mean: ``(C,)``, of what arrives at the norm.
        scale: ``(C,)``, one over the deviation there, ``eps`` included.
    """

    link: Link
    factor: Tensor | None
    gain: Tensor | None
    bias: Tensor | None
    mean: Tensor
    scale: Tensor

    @classmethod
    def begin(cls, link: Link, weights: Sequence[Tensor | None], x: Tensor) -> "LinkCall":
        """With the running statistics, or room for those of the batch."""
        mean, scale = x.new_empty((2, x.shape[1]), dtype=computed_in(x))
        if not link.batch:
            mean.copy_(cast(Tensor, link.norm.running_mean))
            scale.copy_(cast(Tensor, link.norm.running_var)).add_(link.norm.eps).rsqrt_()
        factor, gain, bias = weights
        return cls(link, factor, gain, bias, mean, scale)

    def of(self, part: slice) -> "LinkCall":
        """The numbers of some channels, in the same memory."""
        factor, gain, bias = (None if v is None else v[part] for v in (self.factor, self.gain, self.bias))
        return LinkCall(self.link, factor, gain, bias, self.mean[part], self.scale[part])

    def first(self, x: Tensor) -> Tensor:
        """What the norm makes of ``x``, one sample, a new tensor; takes its statistics if they are asked for."""
        if not self.link.batch:
            return self.again(x)
        u = x if self.factor is None else x * self.factor[:, None]
        channels, values = x.shape[1:]  # a norm of as many groups as channels is the batch norm of one sample
        size = (1, channels, values, channels)
        y, mean, scale = torch.native_group_norm(u, self.gain, self.bias, *size, self.link.norm.eps)
        self.mean.copy_(mean[0])
        self.scale.copy_(scale[0])
        return y

    def again(self, x: Tensor) -> Tensor:
        """What the norm makes of ``x`` with the statistics that it has, a new tensor."""
        scale = self.scale if self.gain is None else self.scale * self.gain
        shift = self.mean * scale
        shift = shift.neg_() if self.bias is None else self.bias - shift
        return x.mul((scale if self.factor is None else scale * self.factor)[:, None]).add_(shift[:, None])

    def gradients(self, g: Tensor, x: Tensor) -> tuple[Tensor, "Tensor | None", Tensor, Tensor]:
        """Of what arrived, of factor, gain and bias, by that of what the norm gave."""
        backward, needed, w = torch.ops.aten.native_batch_norm_backward, [True] * 3, self.factor
        if self.link.batch:
            mean, scale = (self.mean, self.scale) if w is None else (self.mean / w, self.scale * w)
            g, of_gain, of_bias = backward(g, x, self.gain, None, None, mean, scale, True, 0.0, needed)
            if w is None:
                return g, None, of_gain, of_bias
            of_factor = self.scale.square().mul_(self.link.norm.eps).mul_(of_gain) / w
            return g, of_factor if self.gain is None else of_factor.mul_(self.gain), of_gain, of_bias
        u = x if w is None else x * w[:, None]
        known = (self.mean, self.scale.square().reciprocal_())
        g, of_gain, of_bias = backward(g, u, self.gain, *known, *known, False, 0.0, needed)
        if w is None:
            return g, None, of_gain, of_bias
        return g * w[:, None], (g * x).sum((0, 2)), of_gain, of_bias

    def update(self, count: int) -> None:
        """Let the norm's running statistics follow, as it does itself; ``count``: values a channel."""
        norm = self.link.norm
        if not (norm.training and norm.track_running_stats):
            return
        share = norm.momentum or 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if norm.momentum is None:
                share = 1.0 / float(norm.num_batches_tracked)
        if norm.running_mean is None or norm.running_var is None:
            return
        variance = self.scale.double().pow(-2).sub_(norm.eps).clamp_min_(0)
        norm.running_mean.mul_(1 - share).add_(self.mean, alpha=share)
        norm.running_var.mul_(1 - share).add_(variance, alpha=share * count / (count - 1))

    def differentiably(self, x: Tensor, slope: float) -> Tensor:
        """What the link makes of it, by functions that can be differentiated as often as anybody likes."""
        if self.factor is not None:
            x = x * self.factor.view(-1, *(1,) * (x.ndim - 2))
        batch = self.link.batch
        mean, variance = (None, None) if batch else (self.mean, self.scale.square().reciprocal_())
        x = F.batch_norm(x, mean, variance, self.gain, self.bias, batch, 0.0, self.link.norm.eps if batch else 0.0)
        return x if self.link.activation is None else self.link.activation.blend(x, slope)


def computed_in(x: Tensor) -> torch.dtype:
    """The dtype of the computation: at least 32 bits."""
    return _WIDER.get(x.dtype, x.dtype)
