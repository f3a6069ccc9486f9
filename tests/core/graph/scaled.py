"""Networks whose channels get factors: what the tests of junctions and of factors share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from nbcompile.core.graph.coupled_channels import Junction, junctions
from nbcompile.core.graph.shapes import Shapes
from nbcompile.core.numerics import relative_error
from nbcompile.testing import scramble_
from tests.symbolic import capture

Forward = Callable[[Any, Tensor], Any]
X = torch.randn(2, 4, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
FACTORS = torch.tensor([0.25, 3.0, 1.5, 0.5, 7.0, 0.125], dtype=torch.float64)


class Written(nn.Module):
    """A network as a function of its layers: ``a`` gives six channels, ``b`` to ``d`` keep them, ``z`` reads them."""

    def __init__(self, forward: Forward, **layers: nn.Module) -> None:
        super().__init__()
        self.a, self.z = nn.Conv2d(4, 6, 3), nn.Conv2d(6, 5, (3, 1), padding=(1, 0))
        self.b, self.c = nn.Conv2d(6, 6, 3, padding=1, groups=3), nn.Conv2d(6, 6, 1)
        self.d = nn.ConvTranspose2d(6, 6, 3, padding=1, groups=2)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.written = forward
        scramble_(self).double().eval()

    def forward(self, x: Tensor) -> Any:
        return self.written(self, x)


def found(forward: Forward, x: Tensor = X, **layers: nn.Module) -> tuple[fx.GraphModule, tuple[Junction, ...]]:
    gm = capture(Written(forward, **layers))
    return gm, junctions(gm, Shapes(gm, (x,)))


def scale(gm: fx.GraphModule, junction: Junction, factors: Tensor) -> None:
    """Divide what is written by ``factors``, and multiply what is read."""
    with torch.no_grad():
        for name in junction.writers:
            layer: Any = gm.get_submodule(name)
            _outputs(layer).div_(factors.view(*_shape(layer, len(factors))))
            if layer.bias is not None:
                layer.bias /= factors
        for reader in junction.readers:
            layer = gm.get_submodule(reader.name)
            inputs = factors.repeat_interleave(reader.repeats)
            groups = getattr(layer, "groups", 1)
            if isinstance(layer, nn.ConvTranspose2d):
                layer.weight *= inputs.view(-1, 1, 1, 1)
                continue
            for rows, part in zip(layer.weight.tensor_split(groups), inputs.tensor_split(groups), strict=True):
                rows *= part.view(1, -1, *(1,) * (layer.weight.ndim - 2))


def _outputs(layer: Any) -> Tensor:
    """The weight with all output channels in its first dimension, or in its first two."""
    weight: Tensor = layer.weight
    if not isinstance(layer, nn.ConvTranspose2d):
        return weight
    return weight.view(layer.groups, -1, *weight.shape[1:]).transpose(1, 2)


def _shape(layer: Any, channels: int) -> tuple[int, ...]:
    if isinstance(layer, nn.ConvTranspose2d):
        return layer.groups, channels // layer.groups, 1, 1, 1
    return channels, *(1,) * (layer.weight.ndim - 1)


def outputs(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.cat([v.flatten() for v in value])


def check(gm: fx.GraphModule, every: tuple[Junction, ...], x: Tensor) -> int:
    """How many junctions can be scaled; each of them is, and the network gives what it gave."""
    before = outputs(gm(x.clone()))
    free = [one for one in every if one.refused is None]
    for one in free:
        scale(gm, one, FACTORS[: one.channels] if one.channels <= 6 else torch.rand(one.channels).double() + 0.5)
    assert relative_error(outputs(gm(x.clone())), before) < 1e-12
    return len(free)
