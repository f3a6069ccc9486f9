"""Lifting of average pooling and of padding: as modules and as functions."""

from typing import Any

from torch import fx, nn
from torch.nn.modules.padding import _CircularPadNd, _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd

from nbcompile.core.affine.filled_padding import filled_padding
from nbcompile.core.affine.primitive import Context, Primitive, Rule, why_not_torchs
from nbcompile.core.graph.nodes import argument
from nbcompile.core.graph.operators import Operator
from nbcompile.core.layers import why_changed

_POOL: dict[str, Any] = {
    "kernel_size": None, "stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True,
    "divisor_override": None,
}  # fmt: skip
_MODES: dict[type[nn.Module], str] = {
    _ConstantPadNd: "zeros", _ReflectionPadNd: "reflect", _ReplicationPadNd: "replicate", _CircularPadNd: "circular",
}  # fmt: skip


def _average(context: Context, node: fx.Node, does: Operator, module: nn.Module | None) -> Primitive | str | None:
    if module is not None:
        options = tuple(getattr(module, name, default) for name, default in _POOL.items())
        return why_changed(module) or why_not_torchs(module) or context.pool(node, does.axes, options)
    options = tuple(argument(node, i, *option) for i, option in enumerate(_POOL.items(), start=1))
    return context.pool(node, does.axes, options) if len(node.all_input_nodes) == 1 else None


def _pad(context: Context, node: fx.Node, _: Operator, module: Any) -> Primitive | str | None:
    if module is not None:
        mode = next(mode for cls, mode in _MODES.items() if isinstance(module, cls))
        reason = why_changed(module) or why_not_torchs(module)
        return reason or context.pad(node, list(module.padding), mode, getattr(module, "value", 0.0))
    sides, mode = argument(node, 1, "pad"), argument(node, 2, "mode", "constant")
    value = argument(node, 3, "value", 0.0)
    if len(node.all_input_nodes) != 1 or not all(isinstance(side, int) for side in sides):
        return "its padding depends on the size of the input"
    plain = context.pad(node, list(sides), "zeros" if mode == "constant" else mode, 0.0 if value is None else value)
    return filled_padding(context, node, plain) if isinstance(plain, Primitive) and mode == "constant" else plain


WINDOW_RULES: dict[str, Rule] = {**dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _average), "pad": _pad}
