"""Lifting of convolutions, transposed or not, and linear layers: as modules, and as functions of constant weights."""

import operator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from nbcompile.core.affine.primitive import Build, Context, Primitive, Rule, owner, why_not_torchs
from nbcompile.core.algebra import AffineMap, from_transposed_weight
from nbcompile.core.graph.nodes import argument
from nbcompile.core.graph.operators import Operator
from nbcompile.core.layers import lift, per_axis, why_changed, why_no_layer


def _convolution(context: Context, node: fx.Node, does: Operator, module: nn.Module | None) -> Primitive | str:
    """A module, or ``F.conv2d`` and its like with a constant weight, computed or not."""
    if module is not None:
        return _layer(context, node, module)
    axes, transposed = does.axes, does.name.startswith("conv_transpose")
    weight, bias = (context.constants.value(argument(node, i, name)) for i, name in ((1, "weight"), (2, "bias")))
    if reason := _why_not(context, node, weight, argument(node, 2, "bias"), bias):
        return reason
    plain = ("stride", "padding", "dilation", "groups")
    names = ("stride", "padding", "output_padding", "groups", "dilation") if transposed else plain
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

    return _functional(context, node, axes, rows.shape[1] * groups, build)


def _linear(context: Context, node: fx.Node, _: Operator, module: nn.Module | None) -> Primitive | str:
    if module is not None:
        return _layer(context, node, module)
    weight, bias = (context.constants.value(argument(node, i, name)) for i, name in ((1, "weight"), (2, "bias")))
    if reason := _why_not(context, node, weight, argument(node, 2, "bias"), bias):
        return reason
    weight = context.constants.learning(weight, node)

    def build(dtype: torch.dtype | None, axes: int, channels: int) -> AffineMap:
        a, b = cast(Any, [v if v is None else v.to(dtype or v.dtype) for v in (weight, bias)])
        return AffineMap(a, b, (), (), ())

    return _functional(context, node, 0, weight.shape[1], build)


def _layer(context: Context, node: fx.Node, module: nn.Module) -> Primitive | str:
    transposed = isinstance(module, _ConvTransposeNd)
    if reason := _why_no_transposed(module) if transposed else why_no_layer(module):
        return reason
    if context.constants.shared(node):
        return f"'{node.target}' is called more than once, or its weights are shared"
    axes = 0 if isinstance(module, nn.Linear) else len(cast(_ConvNd, module).kernel_size)
    weight = cast(Tensor, module.weight)
    inputs = int(weight.shape[1]) if axes == 0 else cast(_ConvNd, module).in_channels
    stored = sum(p.numel() for p in module.parameters(recurse=False))

    def build(dtype: torch.dtype | None, axes: int, channels: int) -> AffineMap:
        return lift(module, dtype or weight.dtype, axes)

    return Primitive(node, node.all_input_nodes[0], str(node.target), frozenset({axes}), inputs, True, stored, build)


def _functional(context: Context, node: fx.Node, axes: int, inputs: int, build: Build) -> Primitive:
    stored = context.constants.params(node)
    name = owner(node) or node.name
    return Primitive(node, argument(node, 0, "input"), name, frozenset({axes}), inputs, True, stored, build)


def _why_not(context: Context, node: fx.Node, weight: Any, given: Any, bias: Any) -> str | None:
    if not isinstance(weight, Tensor) or (given is not None and bias is None):
        return "its weight depends on the input"
    if not weight.is_floating_point():
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}, not floating point"
    others = context.constants.readers(node) - {node} - _border(node)
    return f"'{node.name}' shares its weights" if others else None


def _border(node: fx.Node) -> set[fx.Node]:
    """What fills the padding behind ``node``, with its own bias say (ECB: Zhang et al. 2021, sec. 3.2)."""
    return {write for padding in node.users for write in padding.users if write.target is operator.setitem}


def _why_no_transposed(module: nn.Module) -> str | None:
    weight = cast(Tensor, module.weight)
    if not weight.is_floating_point():
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}, not floating point"
    return why_not_torchs(module) or why_changed(module)


def _sides(padding: Any, axes: int, dilation: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    if padding == "valid":
        return ((0, 0),) * axes
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((t // 2, t - t // 2) for t in total)
    return tuple((p, p) for p in per_axis(padding, axes))


LAYER_RULES: dict[str, Rule] = {
    **dict.fromkeys((f"{kind}{axes}d" for kind in ("conv", "conv_transpose") for axes in (1, 2, 3)), _convolution),
    "linear": _linear,
}
