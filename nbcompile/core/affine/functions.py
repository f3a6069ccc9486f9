"""Lifting of functions and methods: arithmetic with constants, and the functional forms of layers."""

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from nbcompile.core.affine.filled_padding import filled_padding
from nbcompile.core.affine.primitive import ANY_AXES, Context, Primitive, per_axis
from nbcompile.core.affine.slices import lift_slice
from nbcompile.core.algebra import (
    AffineMap,
    NotExact,
    from_transposed_weight,
    frozen_norm,
    per_channel,
)
from nbcompile.core.graph.nodes import ADDS, MULS, argument

SUBTRACTIONS = (operator.sub, operator.isub, torch.sub, torch.subtract, "sub", "sub_", "subtract")
DIVISIONS = (operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide, "div", "div_", "divide")
_CONVOLUTIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3, torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_TRANSPOSED = {F.conv_transpose1d: 1, F.conv_transpose2d: 2, F.conv_transpose3d: 3}
_POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def lift_function(context: Context, node: fx.Node) -> Primitive | str | None:
    """As :meth:`Context.lift`, for nodes that call no module."""
    if node.op not in ("call_function", "call_method"):
        return None
    target: Any = node.target
    rule = _RULES.get(target)
    if rule is None or node.kwargs.get("out") is not None or node in context.constants:
        return None
    source = argument(node, 0, "input")
    if rule is not _arithmetic and (not isinstance(source, fx.Node) or source in context.constants):
        return None
    return rule(context, node)


def _arithmetic(context: Context, node: fx.Node) -> Primitive | str | None:
    """``x * c``, ``x / c``, ``x + c``, ``x - c``, ``c - x``, ``-x`` with a constant per channel, or a number."""
    constants, target = context.constants, cast(Any, node.target)
    left, right = argument(node, 0, "input"), argument(node, 1, "other")
    swapped = isinstance(right, fx.Node) and right not in constants
    source, other = (right, left) if swapped else (left, right)
    value = -1.0 if target in _NEGATIONS else constants.value(other)
    alpha: Any = node.kwargs.get("alpha", 1)
    if not isinstance(source, fx.Node) or source in constants or not _is_number(value) or not _is_number(alpha):
        return None
    value, sign = torch.as_tensor(value), -1 if target in SUBTRACTIONS else 1
    if value.is_complex() or value.dtype == torch.bool or not value.numel():
        return None
    if value.ndim and value.is_floating_point() and value.dtype != context.like(None).dtype:
        return f"it computes in another dtype, {str(value.dtype).removeprefix('torch.')}"
    if not context.floating(source):
        return f"whether '{source.name}' holds floating-point numbers cannot be told: fuse with an example_input"
    value = _double(constants.value(other) if target not in _NEGATIONS else -1.0)
    if target in (*MULS, *_NEGATIONS):
        return _scaled(context, node, source, value, _double(0))
    if target in DIVISIONS:
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


def _convolution(context: Context, node: fx.Node) -> Primitive | str | None:
    """``F.conv2d`` and its like with a constant weight, computed or not."""
    target = cast(Any, node.target)
    transposed = target in _TRANSPOSED
    axes = _TRANSPOSED[target] if transposed else _CONVOLUTIONS[target]
    weight, bias = (context.constants.value(argument(node, i, name)) for i, name in ((1, "weight"), (2, "bias")))
    if reason := _why_not(context, node, weight, argument(node, 2, "bias"), bias):
        return reason
    plain, spread = (
        ("stride", "padding", "dilation", "groups"),
        ("stride", "padding", "output_padding", "groups", "dilation"),
    )
    names = spread if transposed else plain
    given = {
        name: argument(node, 3 + i, name, int(name in ("stride", "dilation", "groups"))) for i, name in enumerate(names)
    }
    groups = int(given["groups"])
    stride, dilation = per_axis(given["stride"], axes), per_axis(given["dilation"], axes)
    padding = _sides(given["padding"], axes, dilation, tuple(weight.shape[2:]))
    weight = context.constants.learning(weight, node)
    rows = from_transposed_weight(weight, groups) if transposed else weight

    def build(dtype: torch.dtype | None, axes: int, channels: int) -> AffineMap:
        a, b = cast(Any, [v if v is None else v.to(dtype or v.dtype) for v in (rows, bias)])
        more: Any = (
            {"transposed": True, "output_padding": per_axis(given["output_padding"], axes)} if transposed else {}
        )
        return AffineMap(a, b, stride, padding, dilation, groups, **more)

    return _functional(context, node, frozenset({axes}), rows.shape[1] * groups, weight, bias, build)


def _linear(context: Context, node: fx.Node) -> Primitive | str | None:
    weight, bias = (context.constants.value(argument(node, i, name)) for i, name in ((1, "weight"), (2, "bias")))
    if reason := _why_not(context, node, weight, argument(node, 2, "bias"), bias):
        return reason
    weight = context.constants.learning(weight, node)

    def build(dtype: torch.dtype | None, axes: int, channels: int) -> AffineMap:
        a, b = cast(Any, [v if v is None else v.to(dtype or v.dtype) for v in (weight, bias)])
        return AffineMap(a, b, (), (), ())

    return _functional(context, node, frozenset({0}), weight.shape[1], weight, bias, build)


def _why_not(context: Context, node: fx.Node, weight: Any, given: Any, bias: Any) -> str | None:
    if not isinstance(weight, Tensor) or (given is not None and bias is None):
        return "its weight depends on the input"
    if not weight.is_floating_point():
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}, not floating point"
    return f"'{node.name}' shares its weights" if context.constants.shared(node) else None


def _functional(
    context: Context, node: fx.Node, axes: frozenset[int], inputs: int, weight: Tensor, bias: Tensor | None, build: Any
) -> Primitive:
    name = _owner(node)
    stored = context.constants.params(node)
    return Primitive(node, argument(node, 0, "input"), name or node.name, axes, inputs, True, stored, build)


def _owner(node: fx.Node) -> str:
    """Qualified name of the module that holds a constant which ``node`` reads; empty if there is none."""
    read = next((n for n in node.all_input_nodes[1:] if n.op == "get_attr"), None)
    return str(read.target).rpartition(".")[0] if read is not None else ""


def _batch_norm(context: Context, node: fx.Node) -> Primitive | str | None:
    names = ("running_mean", "running_var", "weight", "bias")
    given = [argument(node, i, name) for i, name in enumerate(names, start=1)]
    mean, var, gamma, beta = (context.constants.value(v) for v in given)
    by_batch = argument(
        node, 5, *(("use_input_stats", True) if node.target is F.instance_norm else ("training", False))
    )
    if by_batch or given[0] is None or given[1] is None:
        return "it has no running statistics: it normalises by the batch, also in eval mode"
    if computed := [
        v for v, found in zip(given, (mean, var, gamma, beta), strict=True) if v is not None and found is None
    ]:
        return f"'{computed[0]}', one of its parameters, is computed"
    eps = float(argument(node, 7, "eps", 1e-5))

    def build(dtype: torch.dtype | None, axes: int, channels: int) -> AffineMap:
        values: list[Any] = [v if v is None else v.to(dtype or mean.dtype) for v in (mean, var, gamma, beta)]
        return frozen_norm(values[0], values[1], values[2], values[3], eps, axes)

    source = argument(node, 0, "input")
    return context.norm(node, source, _owner(node) or node.name, mean.numel(), build)


def _avg_pool(context: Context, node: fx.Node) -> Primitive | str | None:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    defaults = (None, None, 0, False, True, None)
    options = tuple(argument(node, i, n, d) for i, (n, d) in enumerate(zip(names, defaults, strict=True), start=1))
    if len(node.all_input_nodes) != 1:
        return None
    return context.pool(node, cast(Any, node.target).__name__, options)


def _pad(context: Context, node: fx.Node) -> Primitive | str | None:
    sides, mode, value = (
        argument(node, i, n, d) for i, n, d in ((1, "pad", None), (2, "mode", "constant"), (3, "value", 0.0))
    )
    if len(node.all_input_nodes) != 1 or not all(isinstance(side, int) for side in sides):
        return "its padding depends on the size of the input"
    found = context.pad(node, list(sides), "zeros" if mode == "constant" else mode, 0.0 if value is None else value)
    return filled_padding(context, node, found) if isinstance(found, Primitive) and mode == "constant" else found


def _sides(padding: Any, axes: int, dilation: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    if padding == "valid":
        return ((0, 0),) * axes
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((t // 2, t - t // 2) for t in total)
    return tuple((p, p) for p in per_axis(padding, axes))


_NEGATIONS = (operator.neg, torch.neg, torch.negative, "neg", "negative")
_RULES: dict[Any, Callable[[Context, fx.Node], Primitive | str | None]] = {
    **dict.fromkeys((*ADDS, *SUBTRACTIONS, *MULS, *DIVISIONS, *_NEGATIONS), _arithmetic),
    **dict.fromkeys((*_CONVOLUTIONS, *_TRANSPOSED), _convolution),
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.instance_norm: _batch_norm,
    **dict.fromkeys(_POOLS, _avg_pool),
    F.pad: _pad,
    operator.getitem: lift_slice,
}
