"""From a node of a graph to the affine map that it computes, if it computes one.

A node is *affine* when it applies an affine map to one value that depends on the inputs, everything else it reads being
constant.
"""

from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from nbcompile.core.affine.functions import lift_function
from nbcompile.core.affine.primitive import Context, Primitive
from nbcompile.core.algebra import AffineMap
from nbcompile.core.graph.nodes import module_of
from nbcompile.core.layers import lift, why_changed, why_no_layer


class Lifter(Context):
    """Lifts the nodes of one graph; to be asked in the graph's order."""

    def lift(self, node: fx.Node) -> Primitive | str | None:
        """The affine map of ``node``; the reason why it has none although it looks like one; or None."""
        module = module_of(self.gm, node)
        found = lift_function(self, node) if module is None else self._module(node, module)
        changes = self.aliasing.writers.get(node)
        if isinstance(found, Primitive) and changes is not None:
            return f"it changes '{changes.name}' in place, which is read again"
        return found

    def _module(self, node: fx.Node, module: nn.Module) -> Primitive | str | None:
        if len(node.all_input_nodes) != 1 or len(node.args) + len(node.kwargs) != 1:
            return None
        if isinstance(module, (_ConvNd, nn.Linear)):
            return self._layer(node, module)
        if isinstance(module, (_BatchNorm, _InstanceNorm)):
            return self._norm(node, module)
        if isinstance(module, _POOLS):
            return why_changed(module) or self.pool(
                node, type(module).__name__, (module.kernel_size, module.stride, module.padding, module.ceil_mode,
                module.count_include_pad, getattr(module, "divisor_override", None)),
            )  # fmt: skip
        if isinstance(module, _PADS):
            mode = next(mode for word, mode in _MODES.items() if type(module).__name__.startswith(word))
            return why_changed(module) or self.pad(node, list(module.padding), mode, getattr(module, "value", 0.0))
        return None

    def _layer(self, node: fx.Node, module: nn.Module) -> Primitive | str:
        transposed = isinstance(module, _ConvTransposeNd)
        if reason := _why_no_transposed(module) if transposed else why_no_layer(module):
            return reason
        if self.constants.shared(node):
            return f"'{node.target}' is called more than once, or its weights are shared"
        axes = 0 if isinstance(module, nn.Linear) else len(cast(_ConvNd, module).kernel_size)
        weight = cast(Tensor, module.weight)
        inputs = int(weight.shape[1]) if axes == 0 else cast(_ConvNd, module).in_channels
        stored = sum(p.numel() for p in module.parameters(recurse=False))

        def build(dtype: torch.dtype | None, axes: int, channels: int) -> AffineMap:
            return lift(module, dtype or weight.dtype, axes)

        return Primitive(
            node, node.all_input_nodes[0], str(node.target), frozenset({axes}), inputs, True, stored, build
        )

    def _norm(self, node: fx.Node, module: _BatchNorm | _InstanceNorm) -> Primitive | str:
        if reason := why_changed(module):
            return reason
        if reason := _why_not_torchs(module):
            return reason
        mean = module.running_mean
        by_batch = isinstance(module, _InstanceNorm) and not module.track_running_stats
        if by_batch or mean is None or module.running_var is None:
            return "it has no running statistics: it normalises by the batch, also in eval mode"

        def build(dtype: torch.dtype | None, axes: int, channels: int) -> AffineMap:
            return lift(module, dtype or mean.dtype, axes)

        return self.norm(
            node, node.all_input_nodes[0], str(node.target), module.num_features, build, _AXES.get(type(module))
        )


_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_PADS = (
    nn.modules.padding._ConstantPadNd,
    nn.modules.padding._ReflectionPadNd,
    nn.modules.padding._ReplicationPadNd,
    nn.modules.padding._CircularPadNd,
)
_MODES = {
    "Zero": "zeros",
    "Constant": "zeros",
    "Reflection": "reflect",
    "Replication": "replicate",
    "Circular": "circular",
}
_AXES: dict[type, int] = {
    nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3,
    nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3,
}  # fmt: skip


def _why_not_torchs(module: nn.Module) -> str | None:
    """Why a module may compute something else than the class of torch that it derives from, or None."""
    mro = type(module).__mro__
    own: Any = next(base for base in mro if base.__module__.startswith("torch.nn.") and "forward" in vars(base))
    if type(module).forward is not own.forward:
        return f"its class {type(module).__name__} computes something of its own"
    return None


def _why_no_transposed(module: nn.Module) -> str | None:
    weight = cast(Tensor, module.weight)
    if not weight.is_floating_point():
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}, not floating point"
    return _why_not_torchs(module) or why_changed(module)
