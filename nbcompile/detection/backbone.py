"""A classifier's part that a detector stands on: found by running it, cut off behind the last map that is read.

It is traced by ``torch.fx`` with every module whole that behaves otherwise in training (norms, dropout): one graph for
both modes, under the classifier's own keys. A captured graph (`nbcompile.core.tracing.capture`) is of eval mode alone.
"""

from dataclasses import dataclass

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nbcompile.core.blocks import Expanded
from nbcompile.core.copies import copied
from nbcompile.core.errors import UsageError
from nbcompile.core.graph.shapes import Shapes

STRIDES = (16, 32)
"""Pixels of the image to a cell, of the two maps that a detector reads."""

WIDENED = 2.5
"""A map that has more channels than so many times those of the one before it is the inside of a block, or the
classifier's own last layer: it is costly to read, and says no more than the one before it."""


@dataclass(frozen=True)
class Backbone:
    """What a detector reads.

    Attributes:
        graph: images ``(N, C, H, W)`` to one map ``(N, channels[i], H / STRIDES[i], W / STRIDES[i])`` each.
        channels: of the maps.
        taps: the nodes that give them, by name.
    """

    graph: fx.GraphModule
    channels: tuple[int, ...]
    taps: tuple[str, ...]


def cut_backbone(model: nn.Module, images: Tensor) -> Backbone:
    """The part of a copy of ``model`` up to the last maps at ``STRIDES`` through which all that follows goes.

    Args:
        model: a classifier, or any network of one input; a giant, too. It is left as it is.
        images: ``(N, C, H, W)``, H and W multiples of 32 and more than 32.

    Raises:
        UsageError: if it cannot be traced or run, or has no such maps.
    """
    model = copied(model, training=False)
    name = type(model).__name__
    try:
        traced = fx.GraphModule(model, _Tracer().trace(model))
        shapes = Shapes(traced, (images,))
        found = _passed_by_all(traced, shapes)
    except Exception as error:  # whatever control flow makes of a proxy, or layers of a size
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"a detector cannot stand on {name}: torch.fx cannot trace or run it ({reason})") from error
    taps = [_last_at(stride, found, images, name) for stride in STRIDES]
    channels = tuple(_channels(shapes, tap) for tap in taps)
    for output in traced.graph.find_nodes(op="output"):
        output.args = (tuple(taps),)
    traced.graph.eliminate_dead_code(_is_impure)
    traced.delete_all_unused_submodules()
    graph = fx.GraphModule(traced, traced.graph, "Backbone")
    graph.train()
    return Backbone(graph, channels, tuple(tap.name for tap in taps))


class _Tracer(fx.Tracer):
    """Leaves whole what is torch's own, what has no parts, norms and our blocks."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether ``m`` is one node."""
        whole = isinstance(m, (_BatchNorm, Expanded)) or not any(True for _ in m.children())
        return whole or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class _Map:
    node: fx.Node
    channels: int
    size: tuple[int, ...]


def _passed_by_all(gm: fx.GraphModule, shapes: Shapes) -> list[_Map]:
    """The maps on which all that is computed later depends through them alone, in order: no shortcut passes them."""
    order = [node for node in gm.graph.nodes if node.op != "get_attr"]
    place = {node: i for i, node in enumerate(order)}
    found, reach = [], 0
    for i, node in enumerate(order):
        shape = shapes.of(node)
        if node.op == "output" or shape is None:
            reach = max(reach, i + 1)  # what is no tensor, such as a size, is read by who knows what
            continue
        if reach <= i and len(shape) == 4:
            found.append(_Map(node, shape[1], shape[2:]))
        reach = max([reach, *(place[user] for user in node.users)])
    return found


def _last_at(stride: int, found: list[_Map], images: Tensor, name: str) -> fx.Node:
    """The last map at ``stride``; the one before its channels were widened, where they were.

    Raises:
        UsageError: if there is none.
    """
    wanted = tuple(side // stride for side in images.shape[2:])
    maps = [one for one in found if one.size == wanted]
    if not maps:
        sizes = ", ".join(dict.fromkeys("×".join(map(str, one.size)) for one in found)) or "none"
        raise UsageError(
            f"a detector cannot stand on {name}: it has no map at stride {stride}, {'×'.join(map(str, wanted))} of "
            f"images of {'×'.join(map(str, images.shape[2:]))} (its maps: {sizes}): choose a backbone of stride 32"
        )
    last = len(maps) - 1
    while (before := _before_wider(maps, last)) is not None:
        last = before
    return maps[last].node


def _before_wider(maps: list[_Map], last: int) -> int | None:
    """The last map before those of as many channels as ``maps[last]``, if it is much narrower."""
    for i in range(last - 1, -1, -1):
        if maps[i].channels != maps[last].channels:
            return i if maps[last].channels > WIDENED * maps[i].channels else None
    return None


def _channels(shapes: Shapes, node: fx.Node) -> int:
    shape = shapes.of(node)
    assert shape is not None
    return shape[1]


def _is_impure(node: fx.Node) -> bool:
    """What must stay though nobody reads it: inputs and outputs; modules whose buffers change only with their use."""
    return node.op in ("placeholder", "output")
