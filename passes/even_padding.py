"""Re-express padding that TFLite's convolutions cannot do themselves, so that no PAD operator is needed.

    conv3×3(x, stride 2, padding 1)     =>     conv4×4(x, stride 2, padding 1),    last row and column of zeros

At stride ``s`` the padded size leaves ``r = (size + 2 * padding - reach - 1) mod s`` positions unread at the end.
SAME pads by ``2 * padding - r``, one low position too few where ``r > 0``. With ``r`` more taps nothing is left unread
and SAME pads by exactly ``padding`` on both sides. At other sizes (odd ones, for 3×3 at stride 2) SAME is right.

Keeps: the function (the new taps are zero), names, the layer's own padding; the parameters and multiply-accumulates of
the layer grow by its zeros, which a result says. Leaves alone: what no number of zero taps makes SAME.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import ClassVar, cast

import torch
from torch import Tensor, fx, nn

from nbcompile.core.affine.to_layer import to_layer
from nbcompile.core.algebra import Geometry
from nbcompile.core.algebra.parts import widened
from nbcompile.core.algebra.same_padding import is_same, pads_itself
from nbcompile.core.example import Inputs
from nbcompile.core.graph.nodes import calls, read_directly, tied_to
from nbcompile.core.graph.replace import put
from nbcompile.core.graph.shapes import Shapes
from nbcompile.core.layers import lift, why_no_layer
from nbcompile.passes.base import Pass, PassResult, Skip

MapSizes = list[tuple[int, ...]]
"""Of the maps that a layer reads, in positions per spatial axis; one for every call."""


@dataclass(frozen=True)
class EvenPadding(Pass):
    """Gives strided convolutions the zero taps that make their padding TensorFlow's SAME.

    Attributes:
        inputs: of the model; the result is right at their sizes only.
    """

    name: ClassVar[str] = "even-padding"

    inputs: Inputs

    def call(self, gm: fx.GraphModule) -> PassResult:
        """Rewrite every convolution that can be rewritten."""
        shapes = Shapes(gm, self.inputs)
        rewritten, skipped, how = [], [], []
        for name, layer, geometry, sizes in _candidates(gm, shapes):
            taps = _taps(gm, layer, geometry, sizes)
            if isinstance(taps, str):
                skipped.append(Skip(name, taps))
            else:
                even = _even(layer, geometry.axes, taps)
                put(gm, layer, even)
                rewritten.append(name)
                how.append(f"{name}: {_said(geometry, taps, sizes)}")
        return PassResult(gm, tuple(rewritten), tuple(skipped), tuple(how))


def _candidates(gm: fx.GraphModule, shapes: Shapes) -> Iterator[tuple[str, nn.Module, Geometry, MapSizes]]:
    """Convolutions that pad and are not SAME wherever they are called, with the sizes of what they read."""
    for layer, nodes in calls(gm).items():
        if why_no_layer(layer):
            continue
        weight = cast(Tensor, layer.weight)
        geometry = lift(layer, weight.dtype, weight.ndim - 2).geometry
        read = [shapes.of(node.all_input_nodes[0]) for node in nodes]
        sizes = [shape[-geometry.axes :] for shape in read if shape is not None]
        if geometry.pads and not all(pads_itself(geometry, size) for size in sizes):
            yield str(nodes[0].target), layer, geometry, sizes


def _taps(gm: fx.GraphModule, layer: nn.Module, geometry: Geometry, sizes: MapSizes) -> tuple[int, ...] | str:
    """How many zero taps each axis needs; or why they would not help."""
    if geometry.padding_mode != "zeros":
        return f"it pads by '{geometry.padding_mode}', which no TFLite convolution does"
    if other := tied_to(gm, layer):
        return f"it shares a parameter with '{other}'"
    if read_directly(gm, layer):
        return "other code reads its weight directly"
    needed = [[_along(geometry, axis, size[axis]) for axis in range(geometry.axes)] for size in sizes]
    for reason in (why for axes in needed for why in axes if isinstance(why, str)):
        return reason
    if any(axes != needed[0] for axes in needed):
        return f"it is called on maps of several sizes, {_listed(sizes)}, which need different taps"
    return tuple(cast(list[int], needed[0]))


def _along(geometry: Geometry, axis: int, size: int) -> int | str:
    reach, stride, padding = geometry.reach[axis], geometry.stride[axis], geometry.padding[axis]
    if is_same(size, reach, stride, padding):
        return 0
    padded = size + sum(padding)
    outputs, same = (padded - reach - 1) // stride + 1, -(-size // stride)
    if outputs != same:
        return f"it gives {outputs} positions of {size}, SAME gives {same}: it needs a PAD operator"
    unread, hole = (padded - reach - 1) % stride, geometry.dilation[axis]
    if unread % hole or padding[0] != padding[1]:
        return f"its taps are {hole} positions apart, and {unread} more would be needed: it needs a PAD operator"
    return unread // hole


def _even(layer: nn.Module, axes: int, taps: tuple[int, ...]) -> nn.Module:
    weight = cast(Tensor, layer.weight)
    with torch.no_grad():
        return to_layer(widened(lift(layer, weight.dtype, axes), taps), weight)


def _said(geometry: Geometry, taps: tuple[int, ...], sizes: MapSizes) -> str:
    kernel = tuple(k + more for k, more in zip(geometry.kernel, taps, strict=True))
    logical = sum(prod(geometry.sizes(size)) * geometry.weights for size in sizes)
    executed = logical // prod(geometry.kernel) * prod(kernel)
    return (
        f"{_times(geometry.kernel)} as {_times(kernel)} on {_listed(sizes)}, {executed:,} MACs executed for the "
        f"layer's {logical:,}"
    )


def _times(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes))


def _listed(sizes: MapSizes) -> str:
    return " and ".join(_times(size) for size in sorted(set(sizes)))
