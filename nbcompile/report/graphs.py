"""From an fx graph to the boxes and arrows that a person wants to see.

A norm, activation or dropout is folded into the box it follows, bookkeeping (shapes, asserts, indexing) is looked
through, and a network with too many boxes is shown block by block.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import groupby

from torch import fx

from nbcompile.core.activations import linearised
from nbcompile.core.blocks import Expanded
from nbcompile.core.graph.nodes import activation_of, module_of, norm_of, passes_through, readers
from nbcompile.core.layers import Scale
from nbcompile.report.data import Box, Graph
from nbcompile.report.labels import layer_label

MOST_BOXES = 120

_SHAPES = {"getattr", "assert", "eq", "ne", "size", "dim"}  # read sizes, not values


@dataclass
class _Box:
    name: str
    label: str
    inputs: set[int]
    is_module: bool
    highlighted: bool = False
    details: list[str] = field(default_factory=list)


def graph_of(
    gm: fx.GraphModule,
    highlight: Collection[str] = (),
    title: str = "",
    *,
    within: str = "",
    most: int = MOST_BOXES,
) -> Graph:
    """The drawable form of ``gm``.

    Args:
        gm: a traced network, or a traced block of one.
        highlight: qualified names of layers or blocks; what is inside one of them is highlighted too, and so are
            expansion blocks.
        title: stands above the drawing.
        within: the qualified name of a traced block, put before the names in it.
        most: with more boxes than this the network is drawn block by block, at the finest level that fits.
    """
    boxes: list[_Box] = []
    behind: dict[fx.Node, frozenset[int]] = {}  # the boxes whose output a node stands for
    for node in gm.graph.nodes:
        inputs = frozenset[int]().union(*(behind[source] for source in node.all_input_nodes))
        if node.op in ("get_attr", "output") or _reads_shape(node):
            behind[node] = frozenset()
        elif _function(node) == "getitem":
            behind[node] = inputs
        elif len(inputs) == 1 and _is_only_reader(node) and (follows := _folded(gm, node)) is not None:
            behind[node] = inputs
            (box,) = inputs
            boxes[box].details += follows
        else:
            behind[node] = frozenset({len(boxes)})
            boxes.append(_box(gm, node, inputs, highlight, within))
    return _drawable(boxes, title, most)


def _box(gm: fx.GraphModule, node: fx.Node, inputs: Collection[int], highlight: Collection[str], within: str) -> _Box:
    module = module_of(gm, node)
    if module is None:
        label = "input" if node.op == "placeholder" else _function(node)
        return _Box(node.name, label, set(inputs), is_module=False)
    name = f"{within}.{node.target}" if within else str(node.target)
    marked = isinstance(module, Expanded) or _inside(name, highlight)
    return _Box(name, layer_label(module), set(inputs), is_module=True, highlighted=marked)


def _folded(gm: fx.GraphModule, node: fx.Node) -> list[str] | None:
    """What ``node`` adds to the details of the box it follows; None where it is to have a box of its own."""
    if node.target is linearised:
        return [f"PLT {node.args[2]}"]
    if passes_through(gm, node):
        return []
    if norm_of(gm, node) is not None:
        return ["norm"]
    module = module_of(gm, node)
    if isinstance(module, Scale):
        return ["scale"]
    if activation_of(gm, node) is None:
        return None
    return [_function(node) if module is None else type(module).__name__]


def _function(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).strip("_")


def _reads_shape(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and _function(node) in _SHAPES


def _is_only_reader(node: fx.Node) -> bool:
    """Whether nothing else reads the values that ``node`` reads."""
    sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
    return all(readers(source) == (node,) for source in sources)


def _inside(name: str, blocks: Collection[str]) -> bool:
    return any(name == block or name.startswith(f"{block}.") for block in blocks)


def _drawable(boxes: list[_Box], title: str, most: int) -> Graph:
    nodes = tuple(
        Box(name=box.name, label=box.label, detail=" · ".join(box.details), highlighted=box.highlighted)
        for box in boxes
    )
    edges = tuple((source, target) for target, box in enumerate(boxes) for source in sorted(box.inputs))
    graph = Graph(title=title, nodes=nodes, edges=edges)
    depth = max((box.name.count(".") for box in boxes if box.is_module), default=0)
    coarse = graph
    while len(coarse.nodes) > most and depth > 0:
        coarse = _by_block(graph, [box.is_module for box in boxes], depth)
        depth -= 1
    return coarse


def _by_block(graph: Graph, is_module: list[bool], depth: int) -> Graph:
    """``graph`` with each run of nodes that share the first ``depth`` parts of their name as one node.

    Runs are consecutive in execution order, so that the result has no cycle; functions go with what precedes them.
    """
    keys: list[str] = []
    for node, named in zip(graph.nodes, is_module, strict=True):
        keys.append(".".join(node.name.split(".")[:depth]) if named or not keys else keys[-1])
    runs = [list(run) for _, run in groupby(range(len(keys)), key=keys.__getitem__)]
    home = {member: index for index, run in enumerate(runs) for member in run}
    nodes = tuple(_merged([graph.nodes[member] for member in run], keys[run[0]]) for run in runs)
    edges = sorted({(home[a], home[b]) for a, b in graph.edges if home[a] != home[b]})
    return replace(graph, nodes=nodes, edges=tuple(edges))


def _merged(members: list[Box], name: str) -> Box:
    if len(members) == 1:
        return members[0]
    highlighted = any(node.highlighted for node in members)
    return Box(name=name, label=f"{len(members)} layers", highlighted=highlighted)
