"""Lifting of norms that normalise by their running statistics: as modules, and as functions of constants."""

from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from nbcompile.core.affine.primitive import Context, Primitive, Rule, owner, why_not_torchs
from nbcompile.core.algebra import AffineMap, frozen_norm
from nbcompile.core.graph.nodes import argument
from nbcompile.core.graph.operators import Operator
from nbcompile.core.layers import lift, why_changed

_BY_BATCH = "it has no running statistics: it normalises by the batch, also in eval mode"
_AXES: dict[type, int] = {
    nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3,
    nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3,
}  # fmt: skip


def _norm(context: Context, node: fx.Node, _: Operator, module: nn.Module | None) -> Primitive | str | None:
    return _function(context, node) if module is None else _module(context, node, cast(_BatchNorm, module))


def _module(context: Context, node: fx.Node, module: _BatchNorm | _InstanceNorm) -> Primitive | str:
    if reason := why_changed(module) or why_not_torchs(module):
        return reason
    mean = module.running_mean
    by_batch = isinstance(module, _InstanceNorm) and not module.track_running_stats
    if by_batch or mean is None or module.running_var is None:
        return _BY_BATCH

    def build(dtype: torch.dtype | None, axes: int, channels: int) -> AffineMap:
        return lift(module, dtype or mean.dtype, axes)

    axes = _AXES.get(type(module))
    return context.norm(node, node.all_input_nodes[0], str(node.target), module.num_features, build, axes)


def _function(context: Context, node: fx.Node) -> Primitive | str | None:
    names = ("running_mean", "running_var", "weight", "bias")
    given = [argument(node, i, name) for i, name in enumerate(names, start=1)]
    mean, var, gamma, beta = (context.constants.value(v) for v in given)
    of_instance = node.target is F.instance_norm
    by_batch = argument(node, 5, *(("use_input_stats", True) if of_instance else ("training", False)))
    if by_batch or given[0] is None or given[1] is None:
        return _BY_BATCH
    values = zip(given, (mean, var, gamma, beta), strict=True)
    if computed := [v for v, value in values if v is not None and value is None]:
        return f"'{computed[0]}', one of its parameters, is computed"
    eps = float(argument(node, 7, "eps", 1e-5))

    def build(dtype: torch.dtype | None, axes: int, channels: int) -> AffineMap:
        cast_: list[Any] = [v if v is None else v.to(dtype or mean.dtype) for v in (mean, var, gamma, beta)]
        return frozen_norm(cast_[0], cast_[1], cast_[2], cast_[3], eps, axes)

    return context.norm(node, argument(node, 0, "input"), owner(node) or node.name, mean.numel(), build)


NORM_RULES: dict[str, Rule] = {"batch_norm": _norm, "instance_norm": _norm}
