"""Which values of a graph can be scaled channel by channel, and which only together.

``act(s * x) = s * act(x)`` for every positive ``s`` where ``act`` is ReLU, LeakyReLU, PReLU, a pooling or zero padding
(``0 * s = 0``: the ring that a convolution pads is that of the scaled map, too). So a factor per channel can be taken
out of the layers that write a value and put into those that read it. Values that a sum or such an activation ties
together share their factors: they are one junction.
"""

from dataclasses import dataclass, field
from math import prod
from typing import Any, cast

from torch import fx, nn
from torch.nn.modules.padding import _CircularPadNd, _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from nbcompile.core.activations import Activation
from nbcompile.core.graph.aliasing import name_of
from nbcompile.core.graph.nodes import (
    ADDS,
    MULS,
    activation_of,
    argument,
    asks_metadata,
    calls,
    layer_of,
    module_of,
    passes_through,
    read_directly,
    tied_to,
)
from nbcompile.core.graph.shapes import Shapes
from nbcompile.core.layers import LayerSpec, why_changed, why_no_layer

_MAPS: tuple[type[nn.Module], ...] = (_MaxPoolNd, _AvgPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd)
_MAPS += (_ReflectionPadNd, _ReplicationPadNd, _CircularPadNd, nn.Upsample)
_MAP_FUNCTIONS = {
    f"{kind}_pool{axes}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for axes in (1, 2, 3)
}
_MAP_FUNCTIONS |= {"interpolate", "mean"}
_FLAT = {"flatten", "view", "reshape", "squeeze"}
GIVEN_OUT = "the network gives it out"
_GATES = (nn.Sigmoid, nn.Hardsigmoid)


@dataclass(frozen=True)
class Reader:
    """A layer that reads a junction.

    Attributes:
        name: its qualified name.
        repeats: how many of its inputs in a row are one channel: the size of a map that was flattened; else 1.
    """

    name: str
    repeats: int


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


@dataclass(eq=False)
class Junction:
    """Values whose channels have one factor each.

    Attributes:
        channels: how many.
        writers: qualified names of the layers whose outputs they are, in graph order.
        readers: the layers that read them.
        clips: activations among them that cut.
        refused: why they cannot be scaled, or None.
    """

    channels: int
    writers: list[str] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)
    refused: str | None = None


def junctions(gm: fx.GraphModule, shapes: Shapes) -> tuple[Junction, ...]:
    """The junctions of ``gm`` that a layer writes and somebody reads, in graph order."""
    return _Junctions(gm, shapes).found()


def why_fixed(gm: fx.GraphModule, node: fx.Node, layer: nn.Module) -> str | None:
    """Why the weights of ``layer``, which ``node`` calls, cannot be changed for this call alone, or None."""
    if reason := why_no_layer(layer):
        return reason
    if (count := len(calls(gm)[layer])) > 1:
        return f"it is called {count} times"
    if len(node.args) + len(node.kwargs) != 1:
        return "it is called with an output size"
    if other := tied_to(gm, layer):
        return f"it shares a parameter with '{other}'"
    return "other code reads its weight directly" if read_directly(gm, layer) else None


class _Junctions:
    def __init__(self, gm: fx.GraphModule, shapes: Shapes) -> None:
        self.gm, self.shapes = gm, shapes
        self.of: dict[fx.Node, Junction] = {}
        self.axis: dict[fx.Node, int] = {}
        self.repeats: dict[fx.Node, int] = {}

    def found(self) -> tuple[Junction, ...]:
        for node in self.gm.graph.nodes:
            if not asks_metadata(node):
                self._visit(node)
        every = dict.fromkeys(self.of.values())
        return tuple(one for one in every if one.writers and (one.readers or one.refused not in (None, GIVEN_OUT)))

    def _visit(self, node: fx.Node) -> None:
        sources = [n for n in node.all_input_nodes if self.shapes.of(n) is not None]
        layer = layer_of(self.gm, node)
        if layer is not None and (reason := self._why_not(node, layer)) is None:
            self._reads(sources[0], node, layer)
            self._writes(node, layer)
        elif layer is None and self._ties(node, sources):
            self._tie(node, sources)
        elif layer is None and (gated := self._gated(node)) is not None:
            self._refuse(next(n for n in sources if n is not gated), f"'{_name(node)}' multiplies by it")
            self._tie(node, [gated])
        else:
            said = f": {reason}" if layer is not None else ""
            for source in sources:
                self._refuse(source, _reads_it(node) + said)
            self._new(node, 0, 1, _computes_it(node) + said)

    def _why_not(self, node: fx.Node, layer: nn.Module) -> str | None:
        if reason := why_fixed(self.gm, node, layer):
            return reason
        shape, axes = self.shapes.of(node), LayerSpec.of(layer).axes
        if shape is None or len(shape) < 2 or (axes and len(shape) != axes + 2):
            return "its input has no batch"
        return None

    def _writes(self, node: fx.Node, layer: nn.Module) -> None:
        spec = LayerSpec.of(layer)
        self._new(node, spec.outputs, 1 if spec.axes else len(cast(Any, self.shapes.of(node))) - 1)
        self.of[node].writers.append(str(node.target))

    def _reads(self, source: fx.Node, node: fx.Node, layer: nn.Module) -> None:
        shape = cast(tuple[int, ...], self.shapes.of(source))
        axis = 1 if LayerSpec.of(layer).axes else len(shape) - 1
        if self.axis[source] == axis:
            self.of[source].readers.append(Reader(str(node.target), self.repeats[source]))
        else:
            self._refuse(source, f"'{_name(node)}' reads another axis of it")

    def _ties(self, node: fx.Node, sources: list[fx.Node]) -> bool:
        """Whether the result of ``node`` is scaled where ``sources`` are."""
        if node.op not in ("call_module", "call_function", "call_method") or not sources:
            return False
        first, shape = sources[0], self.shapes.of(node)
        if shape is None or not self.of[first].channels:
            return False
        if node.target in ADDS and node.op != "call_module":
            alike = {
                (self.axis[n], self.repeats[n], self.of[n].channels, len(self.shapes.of(n) or ())) for n in sources
            }
            return len(alike) == 1 and len(sources) == len([a for a in node.args[:2] if isinstance(a, fx.Node)]) == 2
        if len(sources) != 1:
            return False
        if _elementwise(self.gm, node):
            return True
        before = cast(tuple[int, ...], self.shapes.of(first))
        return self.axis[first] == 1 and (_on_maps(self.gm, node, len(before)) or self._flattens(node, before, shape))

    def _flattens(self, node: fx.Node, before: tuple[int, ...], after: tuple[int, ...]) -> bool:
        """``(N, C, *spatial)`` to ``(N, C * spatial)``: every channel becomes as many features in a row."""
        flat = isinstance(module_of(self.gm, node), nn.Flatten) or (node.op != "call_module" and name_of(node) in _FLAT)
        return flat and after == (before[0], prod(before[1:]))

    def _gated(self, node: fx.Node) -> fx.Node | None:
        """The value that a squeeze-and-excite multiplies by a sigmoid, or None."""
        if node.target not in MULS or node.op == "call_module" or len(node.all_input_nodes) != 2:
            return None
        gates = [
            n for n in node.all_input_nodes if isinstance(module_of(self.gm, n), _GATES) or name_of(n) in _SIGMOIDS
        ]
        values = [n for n in node.all_input_nodes if n not in gates]
        same = len(values) == 1 and self.shapes.of(values[0]) == self.shapes.of(node)
        return values[0] if same else None

    def _tie(self, node: fx.Node, sources: list[fx.Node]) -> None:
        first = sources[0]
        for other in sources[1:]:
            self._join(self.of[first], self.of[other])
        junction = self.of[first]
        self.of[node], self.axis[node] = junction, self.axis[first]
        before, after = self.shapes.of(first) or (), self.shapes.of(node) or ()
        flat = len(after) == 2 < len(before) and after[1] != before[1]
        self.repeats[node] = self.repeats[first] * (prod(before[2:]) if flat else 1)
        if clip := clip_of(self.gm, node):
            junction.clips.append(clip)

    def _join(self, one: Junction, other: Junction) -> None:
        if one is other:
            return
        one.writers += other.writers
        one.readers += other.readers
        one.clips += other.clips
        one.refused = one.refused or other.refused
        for node, junction in self.of.items():
            if junction is other:
                self.of[node] = one

    def _new(self, node: fx.Node, channels: int, axis: int, refused: str | None = None) -> None:
        self.of[node], self.axis[node], self.repeats[node] = Junction(channels, refused=refused), axis, 1

    def _refuse(self, node: fx.Node, reason: str) -> None:
        self.of[node].refused = self.of[node].refused or reason


_SIGMOIDS = {"sigmoid", "hardsigmoid"}


def _elementwise(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether ``node`` commutes with positive factors, value by value; a clip does while it does not cut."""
    module = module_of(gm, node)
    if isinstance(module, nn.PReLU) and why_changed(module) is None:
        return True
    activation = activation_of(gm, node)
    known = isinstance(activation, Activation) and activation.name in ("relu", "leaky_relu")
    return known or passes_through(gm, node) or clip_of(gm, node) is not None


def clip_of(gm: fx.GraphModule, node: fx.Node) -> Clip | None:
    """The clip that ``node`` is, or None."""
    module = module_of(gm, node)
    if isinstance(module, nn.Hardtanh) and why_changed(module) is None and module.min_val <= 0 < module.max_val:
        return Clip(node.name, float(module.min_val), float(module.max_val))
    return Clip(node.name, 0.0, 6.0) if activation_of(gm, node) == Activation("relu6") else None


def _on_maps(gm: fx.GraphModule, node: fx.Node, dimensions: int) -> bool:
    """Whether ``node`` works on every map of a value of so many dimensions by itself, and commutes with factors."""
    module = module_of(gm, node)
    if module is not None:
        zero = isinstance(module, _ConstantPadNd) and module.value == 0
        return (isinstance(module, _MAPS) or zero) and why_changed(module) is None
    if name_of(node) == "pad":
        value = argument(node, 3, "value") if argument(node, 2, "mode", "constant") == "constant" else 0
        sides = argument(node, 1, "pad", ())
        return not value and len(sides) <= 2 * (dimensions - 2)
    if name_of(node) == "mean":
        dims = argument(node, 1, "dim")
        dims = [dims] if isinstance(dims, int) else dims
        return bool(dims) and all(dim % dimensions > 1 for dim in dims)
    return name_of(node) in _MAP_FUNCTIONS


def _reads_it(node: fx.Node) -> str:
    return GIVEN_OUT if node.op == "output" else f"'{_name(node)}' reads it and takes no factors"


def _computes_it(node: fx.Node) -> str:
    return (
        f"'{_name(node)}' is an input" if node.op == "placeholder" else f"'{_name(node)}' computes it without factors"
    )


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op in ("call_module", "placeholder") else node.name
