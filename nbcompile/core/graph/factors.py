"""Which nodes let a factor per channel through, and whose weights can take one.

``f(s * x) = s * f(x)`` for every positive ``s`` where ``f`` is ReLU, LeakyReLU, PReLU, a pooling or zero padding
(``0 * s = 0``: the ring that a convolution pads is that of the scaled map, too); for ReLU6 as long as it does not cut.
"""

from dataclasses import dataclass

from torch import fx, nn
from torch.nn.modules.padding import _ConstantPadNd

from nbcompile.core.activations import Activation
from nbcompile.core.graph.nodes import (
    activation_of,
    argument,
    module_of,
    operator_of,
    passes_through,
)
from nbcompile.core.graph.operators import MUL, called, named
from nbcompile.core.graph.owners import Owners
from nbcompile.core.graph.shapes import Shapes
from nbcompile.core.layers import why_changed, why_no_layer


@dataclass(frozen=True)
class Clip:
    """An activation that is the identity (or ReLU) as long as no value passes its bounds.

    Attributes:
        node: its name in the graph.
        low: values below are cut; 0 where the activation is else a ReLU, which takes any factor.
        high: values above are cut.
    """

    node: str
    low: float
    high: float


def why_fixed(owners: Owners, node: fx.Node, layer: nn.Module) -> str | None:
    """Why the weights of ``layer``, which ``node`` calls, cannot be changed for this call alone, or None."""
    if reason := why_no_layer(layer):
        return reason
    if (count := len(owners.calls[layer])) > 1:
        return f"it is called {count} times"
    if len(node.args) + len(node.kwargs) != 1:
        return "it is called with an output size"
    if other := owners.tied_to(layer):
        return f"it shares a parameter with '{other}'"
    return "other code reads its weight directly" if owners.read_directly(layer) else None


def clip_of(gm: fx.GraphModule, node: fx.Node) -> Clip | None:
    """The clip that ``node`` is, or None."""
    module = module_of(gm, node)
    if isinstance(module, nn.Hardtanh) and why_changed(module) is None and module.min_val <= 0 < module.max_val:
        return Clip(node.name, float(module.min_val), float(module.max_val))
    return Clip(node.name, 0.0, 6.0) if activation_of(gm, node) == Activation("relu6") else None


def commutes_anywhere(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether ``node`` commutes with any positive factors, value by value; a clip does while it does not cut."""
    does = operator_of(gm, node)
    known = does.elementwise and does.scales and not does.random
    limit = activation_of(gm, node) == Activation("relu")  # x.clamp(0)
    return known or limit or passes_through(gm, node) or clip_of(gm, node) is not None


def commutes_on_maps(gm: fx.GraphModule, node: fx.Node, dimensions: int) -> bool:
    """Whether ``node`` works on every map of a value of so many dimensions by itself, and commutes with factors."""
    does, module = operator_of(gm, node), module_of(gm, node)
    if isinstance(module, _ConstantPadNd):
        return does.channelwise and module.value == 0
    if does is named("pad") and module is None:
        value = argument(node, 3, "value") if argument(node, 2, "mode", "constant") == "constant" else 0
        return not value and len(argument(node, 1, "pad", ())) <= 2 * (dimensions - 2)
    if does is named("mean"):
        dims = argument(node, 1, "dim")
        dims = [dims] if isinstance(dims, int) else dims
        return bool(dims) and all(dim % dimensions > 1 for dim in dims)
    return does.channelwise and does.scales and not does.random


def gated_value(gm: fx.GraphModule, node: fx.Node, shapes: Shapes) -> fx.Node | None:
    """The value that a squeeze-and-excite multiplies by a sigmoid, or None."""
    if called(node) is not MUL or len(node.all_input_nodes) != 2:
        return None
    values = [n for n in node.all_input_nodes if not operator_of(gm, n).gate]
    same = len(values) == 1 and shapes.of(values[0]) == shapes.of(node)
    return values[0] if same else None
