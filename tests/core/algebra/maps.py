"""Affine maps for tests: drawn at random, and run by torch's own operators."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import gcd
from typing import TypeVar

import hypothesis.strategies as st
import torch
from torch import Tensor
from torch.nn import functional as F

from nbcompile.core.algebra import AffineMap, Geometry, NotExact, to_transposed_weight

T = TypeVar("T")
MODES = ("zeros", "reflect", "replicate", "circular")
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SPREAD = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
LARGEST = {1: 5, 2: 5, 3: 3}
ROOM = 1000
"""Larger than the reach of any chain that is drawn."""


@dataclass(frozen=True)
class Axis:
    """One axis of a map."""

    kernel: int
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1

    @property
    def reach(self) -> int:
        return self.dilation * (self.kernel - 1)


ONE = [Axis(1)]
THREE = [Axis(3)]
SAME = [Axis(3, padding=(1, 1))]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def make(
    inputs: int, outputs: int, axes: list[Axis], groups: int = 1, bias: bool = True, mode: str = "zeros"
) -> AffineMap:
    return AffineMap(
        weight=normal(outputs, inputs // groups, *(a.kernel for a in axes)),
        bias=normal(outputs) if bias else None,
        stride=tuple(a.stride for a in axes),
        padding=tuple(a.padding for a in axes),
        dilation=tuple(a.dilation for a in axes),
        groups=groups,
        padding_mode=mode if any(any(a.padding) for a in axes) else "zeros",
    )


def filled(m: AffineMap, value: Tensor) -> AffineMap:
    """The map with ``value`` where it pads with zeros."""
    return replace(m, pad_value=value if m.pads and m.padding_mode == "zeros" else None)


def transposed(m: AffineMap, beyond: tuple[int, ...] | None = None) -> AffineMap:
    """The transposed map of the same numbers."""
    beyond = (0,) * len(m.kernel) if beyond is None else beyond
    return replace(m, transposed=True, padding_mode="zeros", output_padding=beyond)


def run(m: AffineMap, x: Tensor) -> Tensor:
    """The map by torch's own operators."""
    if not m.kernel:
        return F.linear(x, m.weight, m.bias)
    axes = len(m.kernel)
    if m.transposed:
        y = SPREAD[axes](x, to_transposed_weight(m.weight, m.groups), None, m.stride, 0, 0, m.groups, m.dilation)
        crops = [(-low, more - high) for (low, high), more in zip(m.padding, m.output_padding, strict=True)]
        y = F.pad(y, [side for sides in reversed(crops) for side in sides])
        return y if m.bias is None else y + m.bias.reshape(-1, *(1,) * axes)
    sides = [side for pads in reversed(m.padding) for side in pads]
    padded = F.pad(x, sides, "constant" if m.padding_mode == "zeros" else m.padding_mode)
    if m.pad_value is not None:
        outside = 1 - F.pad(torch.ones_like(x), sides)
        padded = padded + outside * m.pad_value.to(x.dtype).reshape(-1, *(1,) * axes)
    return CONVOLVE[axes](padded, m.weight, m.bias, m.stride, 0, m.dilation, m.groups)


def run_all(chain: tuple[AffineMap, ...], x: Tensor) -> Tensor:
    for m in chain:
        x = run(m, x)
    return x


def size_after(g: Geometry, size: tuple[int, ...]) -> tuple[int, ...] | None:
    """Spatial size of the output, or None where torch refuses the input."""
    if g.pads:
        for n, (low, high) in zip(size, g.padding, strict=True):
            most = {"reflect": n - 1, "circular": n}.get(g.padding_mode, max(low, high))
            if max(low, high) > most:
                return None
    after = g.sizes(size)
    return after if all(n > 0 for n in after) else None


def attempt(merge: Callable[[], T]) -> T | str:
    """What ``merge`` gives, or why it refuses."""
    try:
        return merge()
    except NotExact as refusal:
        return str(refusal)


def inputs_of(m: AffineMap) -> int:
    return m.weight.shape[1] * m.groups


def error(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    worst, scale = float((found - wanted).abs().max()), float(wanted.abs().max())
    return worst / scale if scale else worst


def runs_along(axis: int, chain: list[Geometry], size: int) -> bool:
    """Whether a chain takes maps of this size along one axis, the others having room enough."""
    reached: tuple[int, ...] | None = tuple(size if i == axis else ROOM for i in range(chain[0].axes))
    for g in chain:
        reached = None if reached is None else size_after(g, reached)
    return reached is not None


def fitting(*chains: tuple[AffineMap, ...]) -> list[tuple[int, ...]]:
    """The sizes of 1 to 9 that every chain takes: axis by axis, since no axis asks for another one's size."""
    outlines = [[m.geometry for m in chain] for chain in chains]
    axes = range(outlines[0][0].axes)
    return list(product(*[[n for n in range(1, 10) if all(runs_along(i, c, n) for c in outlines)] for i in axes]))


def compare(whole: AffineMap, chain: tuple[AffineMap, ...], size: tuple[int, ...]) -> None:
    x = normal(2, inputs_of(chain[0]), *size)
    assert error(run(whole, x), run_all(chain, x)) < 1e-12


@cache
def axis_of(largest: int, pads: bool) -> st.SearchStrategy[Axis]:
    """One choice an axis, the plainest first: half of them have stride 1, and half dilation 1."""
    sides, steps = range(3 if pads else 1), (1, 1, 2, 3)
    every = product(steps, steps, sides, sides, range(1, largest + 1))
    return st.sampled_from([Axis(kernel, stride, (low, high), hole) for hole, stride, low, high, kernel in every])


@st.composite
def maps(draw: st.DrawFn, axes: int, inputs: int, outputs: int, pads: bool, mode: str) -> AffineMap:
    groups = draw(st.sampled_from([g for g in (1, 2, 3, 6) if gcd(inputs, outputs) % g == 0]))
    shape = [draw(axis_of(LARGEST[axes], pads)) for _ in range(axes)]
    return make(inputs, outputs, shape, groups, draw(st.booleans()), mode)


@st.composite
def any_map(draw: st.DrawFn) -> AffineMap:
    """Of any number of axes, transposed or not; most are what one layer can be."""
    axes = draw(st.integers(0, 3))
    inputs, outputs = draw(st.sampled_from(((2, 6), (6, 6), (6, 3))))
    if not axes:
        return make(
            inputs, outputs, [], draw(st.sampled_from((1, 1, 3) if inputs == 6 else (1, 2))), draw(st.booleans())
        )
    mode = draw(st.sampled_from(("zeros", "zeros", "reflect", "replicate", "circular")))
    m = draw(maps(axes, inputs, outputs, pads=True, mode=mode))
    if draw(st.booleans()):  # else most pad their sides by different amounts
        sides = [draw(st.sampled_from([(0, 0), (1, 1), (2, 2), (r // 2, r - r // 2)])) for r in m.geometry.reach]
        m = replace(m, padding=tuple(sides), padding_mode=mode if any(map(any, sides)) else "zeros")
    if draw(st.sampled_from((False, False, True))):
        return transposed(m, tuple(draw(st.integers(0, 3)) for _ in range(axes)))
    return m
