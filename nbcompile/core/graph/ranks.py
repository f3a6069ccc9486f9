"""How many dimensions values have at least, as far as a graph shows it: layers take maps without a batch, too."""

from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from nbcompile.core.graph.aliasing import name_of
from nbcompile.core.graph.constants import Constants
from nbcompile.core.graph.nodes import argument, module_of

BATCHED = 5
"""Dimensions of a batch of maps of three axes: of what has a batch for sure, however many axes it has."""

DIMENSIONS = "dimensions"
"""Key in the ``meta`` of a placeholder: how many dimensions it has, where that was seen."""

_KEEPING_MODULES = ("conv", "batchnorm", "instancenorm", "activation", "pooling", "padding", "dropout", "linear")
_KEEPING = {
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "pad"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "interpolate"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "dropout", "contiguous", "clamp"),
    *("relu", "relu_", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "hardtanh", "hardsigmoid", "sigmoid"),
}
_BROADCASTING = {
    *("add", "add_", "iadd", "sub", "sub_", "isub", "mul", "mul_", "imul", "div", "div_", "truediv", "itruediv"),
    *("multiply", "subtract", "neg"),
}


def least_dimensions(gm: fx.GraphModule, constants: Constants) -> dict[fx.Node, int]:
    """The number of dimensions that the value of each node has at least; 0 where nothing shows it.

    Args:
        gm: a graph whose placeholders may say how many they have (``DIMENSIONS``).
        constants: of the graph.

    A batch norm takes the channels from dimension 1: what it takes has a batch. A constant of four dimensions gives
    every sum and product that it is in as many.
    """
    found: dict[fx.Node, int] = {}
    for node in gm.graph.nodes:
        module, source = module_of(gm, node), next(iter(node.all_input_nodes), None)
        if node.op == "placeholder":
            found[node] = node.meta.get(DIMENSIONS, 0)
        elif isinstance(module, _BatchNorm) or node.target is F.batch_norm:
            found[node] = BATCHED
        elif name_of(node) == "flatten" and node.op != "call_module":
            found[node] = 2 if argument(node, 1, "start_dim", 0) == 1 else 0
        elif isinstance(module, nn.Flatten):
            found[node] = 2 if module.start_dim == 1 else 0
        elif node.op != "call_module" and name_of(node) in _BROADCASTING:
            found[node] = max((_of(n, found, constants) for n in node.all_input_nodes), default=0)
        else:
            keeps = name_of(node) in _KEEPING if module is None else _keeps(module)
            found[node] = found[source] if keeps and source is not None else 0
    return found


def _of(node: fx.Node, found: dict[fx.Node, int], constants: Constants) -> int:
    value: Any = constants.value(node)
    return value.ndim if isinstance(value, Tensor) else found[node]


def _keeps(module: nn.Module) -> bool:
    """Whether what a module gives has as many dimensions as what it takes first."""
    where, _, kind = type(module).__module__.rpartition(".")
    return (
        where == "torch.nn.modules"
        and kind in _KEEPING_MODULES
        and not isinstance(module, (nn.MultiheadAttention, nn.Bilinear))
        and not getattr(module, "return_indices", False)
    )
