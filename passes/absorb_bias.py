"""Move what is always added to a channel before a ReLU behind it, into the bias of the layers that read it.

    conv2(relu(conv1(x)))     =>     conv2'(relu(conv1'(x))),    bias1' = bias1 - c,  bias2' = bias2 + W2 c

where ``c`` is the least value that the channel has before the ReLU on calibration data, if that is positive: there
``relu(v) = relu(v - c) + c``, and the range that int8 must cover is shorter by ``c``. On other data a value below ``c``
gives another result: so the change depends on data, and who calls this must measure it.

Keeps: the function on the calibration data. Leaves alone: layers that pad (the ring has no ``c`` in it), channels that
reach the clip of a ReLU6, values that anything but convolutions and linear layers reads.

Source: Nagel et al. 2019, arXiv 1906.04721, sec. 4.1.3, with the observed minimum in the place of ``beta - 3 gamma``.
"""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, fx, nn

from nbcompile.core.activations import Activation
from nbcompile.core.affine.to_layer import to_layer
from nbcompile.core.algebra import AffineMap, NotExact, compose, per_channel
from nbcompile.core.graph.channel_ranges import ChannelRange, ChannelRanges
from nbcompile.core.graph.factors import clip_of, why_fixed
from nbcompile.core.graph.nodes import activation_of, layer_of
from nbcompile.core.graph.owners import Owners
from nbcompile.core.graph.replace import put
from nbcompile.core.layers import lift
from nbcompile.passes.base import Pass, PassResult, Skip

LEAST_PART = 1e-3
"""Part of a channel's range that is worth absorbing."""


@dataclass(frozen=True)
class AbsorbBias(Pass):
    """Moves biases behind activations.

    Attributes:
        ranges: of the graph as it is.
    """

    name: ClassVar[str] = "absorb-bias"

    ranges: ChannelRanges

    def call(self, gm: fx.GraphModule) -> PassResult:
        """Absorb where a channel is always positive."""
        rewritten, skipped, how, owners = [], [], [], Owners(gm)
        for node in gm.graph.nodes:
            layer, users = layer_of(gm, node), tuple(node.users)
            seen = self.ranges.get(users[0].name) if layer is not None and len(users) == 1 else None
            if layer is None or seen is None or not _rectifies(gm, users[0]):
                continue
            shift = _shift(gm, users[0], seen)
            if bool(shift.any()):
                reason = _why_not(owners, node, layer, users[0]) or _absorb(gm, node, users[0], shift)
                if reason is None:
                    rewritten.append(str(node.target))
                    owners = Owners(gm)
                    how.append(f"{node.target}: up to {float(shift.max()):.3g} in {int((shift > 0).sum())} channels")
                else:
                    skipped.append(Skip(str(node.target), reason))
        return PassResult(gm, tuple(rewritten), tuple(skipped), tuple(how))


def _rectifies(gm: fx.GraphModule, node: fx.Node) -> bool:
    clip = clip_of(gm, node)
    return activation_of(gm, node) == Activation("relu") or (clip is not None and clip.low == 0)


def _shift(gm: fx.GraphModule, activation: fx.Node, seen: ChannelRange) -> Tensor:
    """``(C,)``, >= 0: what every value of a channel has at least; none of a channel that a clip cuts."""
    low, clip = seen.low.double(), clip_of(gm, activation)
    cut = torch.zeros_like(low, dtype=torch.bool) if clip is None else seen.high > clip.high
    return torch.where((low > LEAST_PART * seen.high) & ~cut, low, 0.0)


def _why_not(owners: Owners, node: fx.Node, layer: nn.Module, activation: fx.Node) -> str | None:
    if reason := why_fixed(owners, node, layer):
        return reason
    for user in activation.users:
        reader = layer_of(owners.gm, user)
        if reader is None:
            return f"'{_name(user)}' reads it, which is no convolution or linear layer"
        if reason := why_fixed(owners, user, reader):
            return f"'{_name(user)}' reads it: {reason}"
    return None


def _absorb(gm: fx.GraphModule, node: fx.Node, activation: fx.Node, shift: Tensor) -> str | None:
    """Put new layers in the place of the old, or say why that would not be the same function."""
    made: list[tuple[nn.Module, AffineMap]] = []
    with torch.no_grad():
        for user in (node, *activation.users):
            layer = cast(nn.Module, layer_of(gm, user))
            m = lift(layer, torch.float64, cast(Tensor, layer.weight).ndim - 2)
            ones = torch.ones_like(shift)
            try:
                axes = len(m.kernel)
                first = user is node
                whole = (
                    compose(m, per_channel(ones, -shift, axes)) if first else compose(per_channel(ones, shift, axes), m)
                )
            except NotExact as reason:
                return f"'{_name(user)}' reads it: {reason}"
            made.append((layer, whole))
        for layer, whole in made:
            new = to_layer(whole, cast(Tensor, layer.weight))
            put(gm, layer, new)
    return None


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name
