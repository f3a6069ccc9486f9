"""Equalize the ranges of channels across layers, so that one scale per tensor fits them all in int8.

    conv2(relu(conv1(x)))     =>     conv2'(relu(conv1'(x))),    conv1' = conv1 / s,  conv2' = conv2 * s  (per channel)

with ``s = sqrt(r1 / r2)``: ``r1`` the largest magnitude of a channel's weights in the layers that write it, ``r2`` in
those that read it; repeated until all are balanced. Through ReLU, LeakyReLU, PReLU, poolings, flattening, sums and zero
padding this is exact.

Keeps: the function, up to rounding (weights are computed in float64 and rounded once); names, shapes, bias or none.
Through ReLU6 and its like it is the same function only where the clip is not reached: so only with ``ranges`` of a
calibration set, and only by factors for which it is not reached there. Leaves alone: values that anything else reads.

Source: Nagel et al. 2019, arXiv 1906.04721, sec. 4.1, Eq. 11.
"""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, fx, nn

from nbcompile.core.affine.to_layer import to_layer
from nbcompile.core.algebra import AffineMap, compose, per_channel
from nbcompile.core.example import Inputs
from nbcompile.core.graph.channel_ranges import ChannelRanges
from nbcompile.core.graph.coupled_channels import Junction, junctions
from nbcompile.core.graph.replace import put
from nbcompile.core.graph.shapes import Shapes
from nbcompile.core.layers import lift
from nbcompile.passes.base import Pass, PassResult, Skip

BIAS_SHARE = 0.1
"""``r1`` is at least this part of the bias. Without it a channel whose weights training has driven to zero has its bias
blown up, and with it the scale of all channels: measured on MobileOne-S0 with every seventh channel so, int8 fell from
12.9 to -0.3 dB, and rose to 15.9 dB with it; where no channel is dead it is of little account (0 to 1: within 2 dB)."""
BALANCED = 0.01
"""Largest relative step of a factor that counts as none: a hundredth is a 70th of a bit."""
SWEEPS = 1000
"""The factors are taken as they are after so many."""


@dataclass(frozen=True)
class Equalize(Pass):
    """Equalizes ranges of channels across layers.

    Attributes:
        inputs: of the model; only for shapes.
        ranges: of the graph as it is, for activations that clip; None leaves these alone.
    """

    name: ClassVar[str] = "equalize"

    inputs: Inputs
    ranges: ChannelRanges | None = None

    def call(self, gm: fx.GraphModule) -> PassResult:
        """Equalize what can be."""
        free, skipped = [], []
        for junction in junctions(gm, Shapes(gm, self.inputs)):
            reason = junction.refused or self._why_cut(junction)
            if reason is None:
                free.append(junction)
            else:
                skipped.append(Skip(junction.writers[0], reason))
        layers = {name: _Layer(gm, name) for junction in free for name in _names(junction)}
        balances = [_Balance(junction, layers, self._least(junction)) for junction in free]
        for _ in range(SWEEPS):
            moved = [balance.step() for balance in balances]
            if not any(moved):
                break
        changed = {name: layer for name, layer in layers.items() if layer.changed}
        for layer in changed.values():
            new = layer.lowered()
            put(gm, layer.module, new)
        how = tuple(f"{name}: {layer}" for name, layer in changed.items())
        return PassResult(gm, tuple(changed), tuple(skipped), how)

    def _why_cut(self, junction: Junction) -> str | None:
        for clip in junction.clips:
            if self.ranges is None:
                return f"'{clip.node}' clips at {clip.high:g}: which factors are safe shows only on calibration data"
            if clip.node not in self.ranges or len(self.ranges[clip.node].low) != junction.channels:
                return f"'{clip.node}' clips at {clip.high:g}, and the ranges of its channels are not known"
        return None

    def _least(self, junction: Junction) -> Tensor:
        """The least factor per channel for which no clip is reached: more than 1 where one is reached already."""
        least = torch.zeros(junction.channels, dtype=torch.float64)
        for clip in junction.clips:
            seen = cast(ChannelRanges, self.ranges)[clip.node]
            least = torch.maximum(least, seen.high.double().cpu() / clip.high)
            if clip.low:
                least = torch.maximum(least, seen.low.double().cpu() / clip.low)
        return least


class _Layer:
    """A layer, and the factors that it is to get; only its largest weights are kept, in float64."""

    def __init__(self, gm: fx.GraphModule, name: str) -> None:
        self.module = gm.get_submodule(name)
        m = self._lifted(cast(Tensor, self.module.weight).dtype)
        magnitude = m.weight.detach().abs().cpu()
        self.magnitude = (magnitude.flatten(2).amax(2) if m.kernel else magnitude).double()
        bias = m.weight.new_zeros(len(m.weight)) if m.bias is None else m.bias
        self.bias = bias.detach().abs().cpu().double()
        self.groups = m.groups
        self.divided = torch.ones_like(self.bias)
        self.multiplied = torch.ones(m.geometry.inputs, dtype=torch.float64)

    def _lifted(self, dtype: torch.dtype) -> AffineMap:
        return lift(self.module, dtype, cast(Tensor, self.module.weight).ndim - 2)

    def rows(self) -> Tensor:
        """The largest weight of every output, or a part of its bias."""
        return torch.maximum(self.magnitude.amax(1), BIAS_SHARE * self.bias)

    def columns(self) -> Tensor:
        """The largest weight of every input."""
        return self._grouped().amax(1).flatten()

    def divide_rows(self, by: Tensor) -> None:
        self.magnitude /= by[:, None]
        self.bias /= by
        self.divided *= by

    def multiply_columns(self, by: Tensor) -> None:
        self._grouped().mul_(by.view(self.groups, 1, -1))
        self.multiplied *= by

    def _grouped(self) -> Tensor:
        """A view of shape ``(groups, outputs // groups, inputs // groups)``."""
        return self.magnitude.view(self.groups, -1, self.magnitude.shape[1])

    @property
    def changed(self) -> bool:
        return not bool((self.divided == 1).all() and (self.multiplied == 1).all())

    def lowered(self) -> nn.Module:
        weight = cast(Tensor, self.module.weight)
        with torch.no_grad():
            m = self._lifted(torch.float64)
            before, after = self.multiplied.to(weight.device), 1 / self.divided.to(weight.device)
            axes = len(m.kernel)
            return to_layer(
                compose(compose(per_channel(before, None, axes), m), per_channel(after, None, axes)), weight
            )

    def __str__(self) -> str:
        return f"inputs × {_span(self.multiplied)}, outputs × {_span(1 / self.divided)}"


class _Balance:
    """A junction on the way to its factors."""

    def __init__(self, junction: Junction, layers: dict[str, _Layer], least: Tensor) -> None:
        self.writers = [layers[name] for name in junction.writers]
        self.readers = [(layers[reader.name], reader.repeats) for reader in junction.readers]
        self.least = least
        self.total = torch.ones_like(least)

    def step(self) -> bool:
        """Balance the channels as the layers now are; whether that moved any factor."""
        written = torch.stack([layer.rows() for layer in self.writers]).amax(0)
        read = torch.stack([layer.columns().view(-1, n).amax(1) for layer, n in self.readers]).amax(0)
        by = torch.where((written > 0) & (read > 0), (written / read).sqrt(), 1.0)
        wanted = torch.where(self.least > 1, 1.0, torch.maximum(self.total * by, self.least))
        by = wanted / self.total
        if float((by - 1).abs().max()) <= BALANCED:
            return False
        for layer in self.writers:
            layer.divide_rows(by)
        for layer, repeats in self.readers:
            layer.multiply_columns(by.repeat_interleave(repeats))
        self.total *= by
        return True


def _names(junction: Junction) -> tuple[str, ...]:
    return (*junction.writers, *(reader.name for reader in junction.readers))


def _span(factors: Tensor) -> str:
    return f"{float(factors.min()):.3g} to {float(factors.max()):.3g}"
