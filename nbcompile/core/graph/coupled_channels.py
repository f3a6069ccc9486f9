"""Which values of a graph can be scaled channel by channel, and which only together.

What commutes with positive factors (:mod:`nbcompile.core.graph.factors`) lets a factor per channel be taken out of the
layers that write a value and put into those that read it. Values that a sum or such an activation ties together share
their factors: they are one junction.
"""

from dataclasses import dataclass, field
from math import prod
from typing import Any, cast

from torch import fx, nn

from nbcompile.core.graph.factors import Clip, clip_of, commutes_anywhere, commutes_on_maps, gated_value, why_fixed
from nbcompile.core.graph.nodes import asks_metadata, layer_of, operator_of
from nbcompile.core.graph.operators import ADD, called
from nbcompile.core.graph.owners import Owners
from nbcompile.core.graph.shapes import Shapes
from nbcompile.core.layers import LayerSpec

GIVEN_OUT = "the network gives it out"


@dataclass(frozen=True)
class Reader:
    """A layer that reads a junction.

    Attributes:
        name: its qualified name.
        repeats: how many of its inputs in a row are one channel: the size of a map that was flattened; else 1.
    """

    name: str
    repeats: int


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
    return _Search(gm, shapes).run()


class _Search:
    """Walks over a graph once, inputs before readers, and lets values share what must have one factor."""

    def __init__(self, gm: fx.GraphModule, shapes: Shapes) -> None:
        self.gm, self.shapes, self.owners = gm, shapes, Owners(gm)
        self.of: dict[fx.Node, Junction] = {}
        self.axis: dict[fx.Node, int] = {}
        self.repeats: dict[fx.Node, int] = {}

    def run(self) -> tuple[Junction, ...]:
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
        elif layer is None and (gated := gated_value(self.gm, node, self.shapes)) is not None:
            # A sigmoid does not commute, so its side keeps its values; the product has the factors of the other side.
            self._refuse(next(n for n in sources if n is not gated), f"'{_name(node)}' multiplies by it")
            self._tie(node, [gated])
        else:
            said = f": {reason}" if layer is not None else ""
            for source in sources:
                self._refuse(source, _reads_it(node) + said)
            self._new(node, 0, 1, _computes_it(node) + said)

    def _why_not(self, node: fx.Node, layer: nn.Module) -> str | None:
        if reason := why_fixed(self.owners, node, layer):
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
        if called(node) is ADD:  # s * a + s * b: both summands have the same factors, or the sum has none
            alike = {
                (self.axis[n], self.repeats[n], self.of[n].channels, len(self.shapes.of(n) or ())) for n in sources
            }
            # Not x + x, which has one source, nor x + 1: a literal takes no factors.
            return len(alike) == 1 and len(sources) == len([a for a in node.args[:2] if isinstance(a, fx.Node)]) == 2
        if len(sources) != 1:
            return False
        if commutes_anywhere(self.gm, node):
            return True
        # The others look at neighbours: within a map all elements must have one factor, so channels are dimension 1.
        before = cast(tuple[int, ...], self.shapes.of(first))
        flat = operator_of(self.gm, node).reshapes and shape == (before[0], prod(before[1:]))
        return self.axis[first] == 1 and (flat or commutes_on_maps(self.gm, node, len(before)))

    def _tie(self, node: fx.Node, sources: list[fx.Node]) -> None:
        first = sources[0]
        for other in sources[1:]:
            self._join(self.of[first], self.of[other])
        junction = self.of[first]
        self.of[node], self.axis[node] = junction, self.axis[first]
        before, after = self.shapes.of(first) or (), self.shapes.of(node) or ()
        # Flattened, a channel is as many features in a row as its map had positions; the reader's columns come so.
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


def _reads_it(node: fx.Node) -> str:
    return GIVEN_OUT if node.op == "output" else f"'{_name(node)}' reads it and takes no factors"


def _computes_it(node: fx.Node) -> str:
    return (
        f"'{_name(node)}' is an input" if node.op == "placeholder" else f"'{_name(node)}' computes it without factors"
    )


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op in ("call_module", "placeholder") else node.name
