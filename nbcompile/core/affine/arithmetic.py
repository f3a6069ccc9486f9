"""Lifting of arithmetic: with a number, or with a constant that has one number a channel."""

from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from nbcompile.core.affine.primitive import ANY_AXES, Context, Primitive, Rule
from nbcompile.core.algebra import AffineMap, NotExact, per_channel
from nbcompile.core.graph.nodes import argument
from nbcompile.core.graph.operators import DIV, MUL, NEG, SUB, Operator


def _arithmetic(context: Context, node: fx.Node, does: Operator, _: nn.Module | None) -> Primitive | str | None:
    """``x * c``, ``x / c``, ``x + c``, ``x - c``, ``c - x``, ``-x`` with a constant per channel, or a number."""
    constants = context.constants
    left, right = argument(node, 0, "input"), argument(node, 1, "other")
    swapped = isinstance(right, fx.Node) and right not in constants
    source, other = (right, left) if swapped else (left, right)
    value = -1.0 if does is NEG else constants.value(other)
    alpha: Any = node.kwargs.get("alpha", 1)
    if not isinstance(source, fx.Node) or source in constants or not _is_number(value) or not _is_number(alpha):
        return None
    value, sign = torch.as_tensor(value), -1 if does is SUB else 1
    if value.is_complex() or value.dtype == torch.bool or not value.numel():
        return None
    if value.ndim and value.is_floating_point() and value.dtype != context.like(None).dtype:
        return f"it computes in another dtype, {str(value.dtype).removeprefix('torch.')}"
    if not context.floating(source):
        return f"whether '{source.name}' holds floating-point numbers cannot be told: fuse with an example_input"
    value = _double(constants.value(other) if does is not NEG else -1.0)
    if does in (MUL, NEG):
        return _scaled(context, node, source, value, _double(0))
    if does is DIV:
        usable = not swapped and node.kwargs.get("rounding_mode") is None and bool(value.ne(0).all())
        return _scaled(context, node, source, value.reciprocal(), _double(0)) if usable else None
    scale, shift = (sign * alpha, value) if swapped else (1, sign * alpha * value)
    return _scaled(context, node, source, _double(scale), shift)


def _scaled(context: Context, node: fx.Node, source: fx.Node, scale: Tensor, shift: Tensor) -> Primitive | None:
    """``scale * x + shift``, both in float64, one of them a number, the other with one dimension that is not 1."""
    values = (scale, shift)
    places = {_place(v) for v in values if v.numel() > 1}
    if None in places:
        return None
    wide, dims = max(v.numel() for v in values), max(v.ndim for v in values)

    def build(dtype: torch.dtype | None, axes: int, channels: int) -> AffineMap:
        if wide not in (1, channels):
            raise NotExact(f"'{node.name}' stretches {channels} channels to {wide}")
        if reason := context.why_wider(source, axes, dims):
            raise NotExact(reason)
        like = context.like(dtype)
        a, b = (v.to(like.device, like.dtype).reshape(-1).expand(channels) for v in values)
        return per_channel(a, b if bool(shift.any()) else None, axes)

    axes = frozenset(cast(set[int], places)) or ANY_AXES
    return Primitive(
        node, source, node.name, axes, None, False, wide if wide > 1 else 0, build, outer=wide > 1, same=True
    )


def _place(value: Tensor) -> int | None:
    """How many dimensions follow the only one that is not 1: the number of spatial axes; None if there are more."""
    wide = [i for i, n in enumerate(value.shape) if n > 1]
    axes = value.ndim - 1 - wide[0]
    return axes if len(wide) == 1 and wide[0] <= 1 and axes <= 3 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _double(value: Any) -> Tensor:
    return value.double() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


ARITHMETIC_RULES: dict[str, Rule] = dict.fromkeys(("add", "sub", "mul", "div", "neg"), _arithmetic)
