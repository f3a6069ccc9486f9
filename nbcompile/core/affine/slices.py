"""Lifting of slices: some of the channels, or a map without its border."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import fx, nn

from nbcompile.core.affine.primitive import ANY_AXES, Context, Primitive, Rule
from nbcompile.core.algebra import AffineMap, NotExact, identity, selection
from nbcompile.core.graph.nodes import argument
from nbcompile.core.graph.operators import SPLITS, Operator, called, named


def _slice(context: Context, node: fx.Node, _: Operator, module: nn.Module | None) -> Primitive | None:
    """``x[:, a:b]``, one part of a chunk or split along the channels, and ``x[:, :, a:-b]``, which crops."""
    source, index = node.args
    if not isinstance(source, fx.Node):
        return None
    if called(source) in SPLITS and isinstance(index, int):
        return _part(context, node, source, index)
    if not isinstance(index, tuple) or len(index) < 2 or not all(isinstance(i, slice) and _literal(i) for i in index):
        return None
    first, channels, *crops = cast(tuple[slice, ...], index)
    if first != slice(None):
        return None
    if all(crop == slice(None) for crop in crops):
        return _selected(context, node, source, lambda count: list(range(count))[channels])
    sides = [_cropped(crop) for crop in crops]
    return _crop(context, node, source, cast(Any, sides)) if channels == slice(None) and None not in sides else None


def _literal(part: slice) -> bool:
    return all(v is None or isinstance(v, int) for v in (part.start, part.stop, part.step))


def _cropped(part: slice) -> tuple[int, int] | None:
    """Positions that ``part`` takes off the low and the high side, whatever the size; None where that depends on it."""
    low, high = part.start or 0, -(part.stop or 0)
    return (low, high) if low >= 0 and high >= 0 and part.stop != 0 and part.step in (None, 1) else None


def _crop(context: Context, node: fx.Node, source: fx.Node, sides: list[tuple[int, int]]) -> Primitive:
    """As a depthwise kernel of one tap that is not in its middle."""

    def build(dtype: torch.dtype | None, axes: int, channels: int) -> AffineMap:
        shape = context.shapes.of(source)
        fewer = len(sides) < axes  # a slice for every axis of what a layer takes says itself how many there are
        if len(sides) > axes or (fewer and (shape is None or len(shape) != axes + 2)):
            raise NotExact(f"'{node.name}' cannot be seen to crop a map: fuse with an example_input")
        whole = [*sides, *[(0, 0)] * (axes - len(sides))]
        kernel = tuple(low + high + 1 for low, high in whole)
        weight = context.like(dtype).new_zeros(channels, 1, *kernel)
        at: Any = (slice(None), 0, *[low for low, _ in whole])
        weight[at] = 1
        ones = (1,) * axes
        return AffineMap(weight, None, ones, ((0, 0),) * axes, ones, groups=channels)

    return Primitive(node, source, node.name, frozenset({1, 2, 3}), None, False, 0, build)


def _part(context: Context, node: fx.Node, split: fx.Node, index: int) -> Primitive | None:
    source = split.args[0]
    size, dim = argument(split, 1, "split_size"), argument(split, 2, "dim", 0)
    if called(split) is named("chunk"):
        size = argument(split, 1, "chunks")
    if not isinstance(source, fx.Node) or dim != 1 or not isinstance(size, (int, list, tuple)):
        return None

    def rows(channels: int) -> list[int]:
        divide = cast(Callable[..., Any], getattr(torch, called(split).name))
        return [int(i) for i in divide(torch.arange(channels), size)[index]]

    return _selected(context, node, source, rows)


def _selected(context: Context, node: fx.Node, source: fx.Node, rows: Callable[[int], list[int]]) -> Primitive:
    def build(dtype: torch.dtype | None, axes: int, channels: int) -> AffineMap:
        shape = context.shapes.of(source)
        if shape is None or len(shape) != axes + 2 or shape[1] != channels:
            raise NotExact(f"'{node.name}' cannot be seen to cut channels: fuse with an example_input")
        chosen, like = rows(channels), context.like(dtype)
        whole = chosen == list(range(channels))
        return identity(channels, axes, like) if whole else selection(chosen, channels, axes, like)

    return Primitive(node, source, node.name, ANY_AXES, None, False, 0, build, cuts=True)


SLICE_RULES: dict[str, Rule] = {"getitem": _slice}
