"""Where expansion may happen: declared graph patterns, and the search for them.

A pattern is a chain of steps along the values of the graph, starting at the layer that would become a site. ``?``
marks an optional step. Steps see through identities, dropout and calls for shapes.

    pointwise, depthwise, spatial           a convolution of kernel 1, of one filter a channel, of kernel over 1
    mix                                     a linear layer or a pointwise convolution
    widening                                a pointwise layer with more outputs than inputs
    conv, linear                            any convolution, any linear layer
    norm, act                               a normalisation; an activation
    gate                                    a product with a function of itself (squeeze and excitation)
    end                                     no activation follows
    sum                                     added to a shortcut from before the first layer

The first rows are the places of the paper; the last four find something in every network that has a layer. The first
row that finds something is taken, unless it finds nothing on the way to the output that most layers reach: what stands
in auxiliary heads alone is not what the network is made of.

Source: NetBooster (arXiv 2306.13586) sec. 4.1 (first pointwise layer of inverted residuals), App. A (first layer of
ResNet blocks, first linear layer of FFNs).
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx, nn

from nbcompile.core.graph.aliasing import Aliasing
from nbcompile.core.graph.ancestors import Ancestors
from nbcompile.core.graph.nodes import activation_of, after, layer_of, norm_of, readers, settled
from nbcompile.core.graph.operators import ADD, MUL, called
from nbcompile.core.layers import LayerSpec, why_no_layer

Node = fx.Node


@dataclass(frozen=True)
class Scene:
    """A graph in which patterns are looked for, as it is now.

    Attributes:
        gm: the graph.
        ancestors: who depends on whom in it.
    """

    gm: fx.GraphModule
    ancestors: Ancestors


Step = Callable[[Scene, Node, Node], Node | None]


@dataclass(frozen=True)
class Pattern:
    """A chain of steps; the first is the layer that becomes the site."""

    name: str
    steps: str

    def matches(self, scene: Scene, node: Node) -> bool:
        """Whether the chain starts at ``node``."""
        first, *rest = self.steps.split()
        if not _is_layer(first)(scene.gm, node):
            return False
        here: Node = node
        for step in rest:
            reached = _STEPS[step.rstrip("?")](scene, here, node)
            if reached is None and not step.endswith("?"):
                return False
            here = reached or here
        return True


PATTERNS = (
    Pattern("inverted-residual", "widening norm? act depthwise norm? act? gate? pointwise norm? end"),
    Pattern("residual-bottleneck", "pointwise norm act spatial norm act gate? pointwise norm? gate? sum"),
    Pattern("residual-basic", "spatial norm act spatial norm? gate? sum"),
    Pattern("ffn", "mix act mix sum"),
    Pattern("conv-norm-act", "conv norm act"),
    Pattern("conv-act", "conv act"),
    Pattern("linear-act", "linear act"),
    Pattern("conv", "conv"),
    Pattern("linear", "linear"),
)


def locate(gm: fx.GraphModule, fits: Callable[[nn.Module], bool] = lambda _: True) -> tuple[str, tuple[Node, ...]]:
    """The candidates: all matches of the first pattern in the table that matches on the way to the main output.

    Where none does, of the first that matches anywhere. A layer that no output depends on is no candidate.

    Args:
        gm: the graph.
        fits: whether a layer can be expanded; one that cannot is no candidate.

    Returns:
        The pattern's name and the matching nodes in graph order, each layer once; ``("", ())`` where none matches.
    """
    read, main = _ways(gm)
    scene = Scene(gm, Ancestors(gm.graph))
    beside: tuple[str, tuple[Node, ...]] = ("", ())
    for pattern in PATTERNS:
        matches: dict[nn.Module, Node] = {}
        for node in gm.graph.nodes:
            layer = layer_of(gm, node) if node in read else None
            if layer is not None and layer not in matches and pattern.matches(scene, node) and fits(layer):
                matches[layer] = node
        found = pattern.name, tuple(matches.values())
        if not main.isdisjoint(matches.values()):
            return found
        if matches and not beside[1]:
            beside = found
    return beside


def _ways(gm: fx.GraphModule) -> tuple[set[Node], set[Node]]:
    """The nodes that any output depends on, and those that the one with the most layers before it does."""
    aliasing = Aliasing(gm)
    outputs = next(iter(reversed(gm.graph.nodes))).all_input_nodes
    ways = [_before(aliasing, output) for output in outputs] or [set(gm.graph.nodes)]
    return set().union(*ways), max(ways, key=lambda way: len({layer_of(gm, node) for node in way}))


def _before(aliasing: Aliasing, value: Node) -> set[Node]:
    """What ``value`` depends on, itself included; what is written into a value is part of it."""
    seen, stack = {value}, [value]
    while stack:
        node = stack.pop()
        new = {*node.all_input_nodes, *aliasing.writing(node)} - seen
        seen |= new
        stack += new
    return seen


def _is_layer(kind: str) -> Callable[[fx.GraphModule, Node], bool]:
    def check(gm: fx.GraphModule, node: Node) -> bool:
        layer = layer_of(gm, node)
        if layer is None or (why_no_layer(layer) or "").startswith("it is a "):
            return False
        spec = LayerSpec.of(layer)
        match kind:
            case "mix":
                return spec.pointwise
            case "conv":
                return spec.kind != "Linear"
            case "linear":
                return spec.kind == "Linear"
            case "pointwise":
                return spec.kind != "Linear" and spec.pointwise
            case "widening":
                return spec.kind != "Linear" and spec.pointwise and spec.outputs > spec.inputs
            case "depthwise":
                return spec.depthwise
            case _:
                return spec.kind != "Linear" and not spec.pointwise

    return check


def _layer(kind: str) -> Step:
    check = _is_layer(kind)

    def step(scene: Scene, here: Node, _: Node) -> Node | None:
        there = after(scene.gm, here)
        return there if there is not None and check(scene.gm, there) else None

    return step


def _norm(scene: Scene, here: Node, _: Node) -> Node | None:
    there = after(scene.gm, here)
    return there if there is not None and norm_of(scene.gm, there) else None


def _act(scene: Scene, here: Node, _: Node) -> Node | None:
    there = after(scene.gm, here)
    return there if there is not None and activation_of(scene.gm, there) else None


def _gate(scene: Scene, here: Node, _: Node) -> Node | None:
    here = settled(scene.gm, here)
    product = next((r for r in readers(here) if called(r) is MUL), None)
    if product is None or len(product.all_input_nodes) != 2:
        return None
    other = next(n for n in product.all_input_nodes if n is not here)
    return product if scene.ancestors.reach(here, other) else None


def _end(scene: Scene, here: Node, _: Node) -> Node | None:
    there = after(scene.gm, here)
    return None if there is not None and activation_of(scene.gm, there) else here


def _sum(scene: Scene, here: Node, start: Node) -> Node | None:
    """An addition of ``here`` (perhaps permuted or scaled) to something that hangs on what is before ``start``."""
    for _ in range(4):
        there = after(scene.gm, here)
        if there is None:
            return None
        if called(there) is ADD and len(there.all_input_nodes) == 2:
            other = next(n for n in there.all_input_nodes if n is not settled(scene.gm, here))
            return there if _hangs_on(scene.ancestors, other, start) else None
        if called(there) is MUL and any(scene.ancestors.reach(n, start) for n in there.all_input_nodes):
            return None  # a gate: the layers compute a factor and no summand
        here = there
    return None


def _hangs_on(ancestors: Ancestors, node: Node, start: Node) -> bool:
    """Whether ``node`` is before ``start``, or a few single-input steps (convolution, norm, pooling) from what is."""
    for _ in range(5):
        if ancestors.reach(node, start):
            return True
        inputs = [n for n in node.all_input_nodes if n.op != "get_attr"]
        if len(inputs) != 1:
            return False
        node = inputs[0]
    return False


_STEPS: dict[str, Step] = {
    **{kind: _layer(kind) for kind in ("pointwise", "depthwise", "spatial", "mix", "conv", "linear", "widening")},
    "norm": _norm,
    "act": _act,
    "gate": _gate,
    "end": _end,
    "sum": _sum,
}
