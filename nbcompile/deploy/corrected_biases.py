"""Biases that take back what rounding the weights shifts, before a network is quantized.

    y = W x + b     =>     y = W x + b + mean((W - W') x)

with ``W'`` the weights as int8 will hold them. The mean is over calibration samples and places, of each layer's own
inputs in float, so that one run corrects all layers.

Source: Nagel et al. 2019, arXiv:1906.04721, sec. 4.2, with the mean of the inputs measured.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nbcompile.core.example import Inputs
from nbcompile.core.progress import step
from nbcompile.core.running import output_of

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LARGEST = 127
_SURE = 2.0  # standard errors that a mean must be away from 0: less may be chance


def with_corrected_biases(graph: nn.Module, samples: Sequence[Inputs], *, per_channel: bool) -> nn.Module:
    """A copy of ``graph`` whose convolutions and linear layers have corrected biases, where they have any.

    Args:
        graph: in deploy form, in eval mode.
        samples: calibration set, at batch 1.
        per_channel: whether weights will have a scale per output channel.
    """
    made = copy.deepcopy(graph)
    layers = [x for x in made.modules() if isinstance(x, (*_CONVOLUTIONS, nn.Linear)) and x.bias is not None]
    means: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}
    hooks = [layer.register_forward_hook(_measure(_rounding_of(layer, per_channel), means)) for layer in layers]
    try:
        with step("correcting biases", len(samples)) as advance:
            for one in samples:
                output_of(made, one)
                advance()
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        for layer, found in means.items():
            assert isinstance(layer.bias, Tensor)
            if found:
                layer.bias += _certain(torch.stack(found)).to(layer.bias.dtype)
    return made


def _rounding_of(layer: nn.Module, per_channel: bool) -> nn.Module:
    """The layer with what its weights lose in place of them, and without a bias."""
    lost = copy.deepcopy(layer)
    weight = lost.get_parameter("weight").detach()
    largest = weight.abs().flatten(1).amax(1) if per_channel else weight.abs().max()
    scale = (largest / _LARGEST).clamp(min=torch.finfo(weight.dtype).tiny).reshape(-1, *[1] * (weight.ndim - 1))
    lost.weight = nn.Parameter(weight - (weight / scale).round() * scale, requires_grad=False)
    lost.register_parameter("bias", None)
    return lost


def _measure(
    lost: nn.Module, means: dict[nn.Module, list[Tensor]]
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """A hook that keeps the mean of what is lost, by channel."""

    def hook(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        y: Tensor = lost(args[0])
        channel = y.ndim - 1 if isinstance(layer, nn.Linear) else 1
        means[layer].append(y.double().movedim(channel, 0).flatten(1).mean(1))

    return hook


def _certain(found: Tensor) -> Tensor:
    """Means over samples ``(N, C)``, 0 where that may be chance."""
    mean, count = found.mean(0), len(found)
    chance = found.std(0) / count**0.5 if count > 1 else torch.zeros_like(mean)
    return torch.where(mean.abs() > _SURE * chance, mean, 0.0)
