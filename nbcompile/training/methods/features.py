"""Where in a network a map can be seen while the network is trained by its own class.

A value of its graph is seen where a module gives it, or takes it first: no graph has to be trained in the network's
place, and what no module gives or takes cannot be seen.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, fx, nn

from nbcompile.core.copies import copied
from nbcompile.core.errors import CaptureError, UsageError
from nbcompile.core.graph.nodes import downstream, module_of
from nbcompile.core.graph.shapes import Shapes
from nbcompile.core.running import output_of, watched
from nbcompile.core.tracing.capture import capture
from nbcompile.spec_strings import close_to

STRIDE = 4
"""The most by which a low-level feature is smaller than the image, on each side."""


@dataclass(frozen=True)
class Feature:
    """A map that can be seen.

    Attributes:
        name: of the layer, or of the graph's node.
        module: path of the module that gives it, or takes it.
        given: whether the module gives it; else it is its first argument.
        shape: of a batch of one, ``(1, C, H, W)`` if it is a map.
    """

    name: str
    module: str
    given: bool
    shape: tuple[int, ...]

    def is_low_level(self, image: Tensor) -> bool:
        """Whether the map is at a stride of ``STRIDE`` or less from ``image`` ``(1, C, H, W)``."""
        return all(side >= whole // STRIDE for side, whole in zip(self.shape[2:], image.shape[2:], strict=True))


def low_level_feature(model: nn.Module, image: Tensor) -> Feature:
    """The last map at stride ``STRIDE`` or less that every path from image to output goes through.

    In a network that never gets coarser that would be the last map of all: there it is the middle one. Where a network
    has no graph, what its modules give stands for what all paths go through.

    Args:
        model: is left as it is.
        image: ``(1, C, H, W)``.

    Raises:
        UsageError: if there is none.
    """
    called = _modules(model, image)
    try:
        graph = capture(model, (image,))
        values: Iterable[Feature | None] = _trunk(graph, image, called)
    except CaptureError:
        values = (given[0] for given in called.values() if len(given) == 1)
    maps = [one for one in values if one is not None and len(one.shape) == 4 and max(one.shape[2:]) > 1]
    low = list(takewhile(lambda one: one.is_low_level(image), maps))
    if not low:
        raise UsageError(
            f"{type(model).__name__} has no map at stride {STRIDE} or less from its images of "
            f"{image.shape[2]}×{image.shape[3]} that can be aligned: name a feature, or leave adversarial at 0"
        )
    return low[-1] if len(low) < len(maps) else low[(len(low) - 1) // 2]


def named_feature(model: nn.Module, image: Tensor, name: str) -> Feature:
    """The map that a layer or a node of the graph called ``name`` gives.

    Args:
        model: is left as it is.
        image: ``(1, C, H, W)``.
        name: of a layer, as ``named_modules`` has it; or of a node.

    Raises:
        UsageError: if there is none, it is no map, or it cannot be seen.
    """
    called = _modules(model, image)
    found = called.get(name) or _nodes(model, image, called, name)
    if len(found) != 1:
        raise UsageError(
            f"feature '{name}' is called {len(found)} times in one pass: name what comes right before or behind"
        )
    if len(found[0].shape) != 4:
        raise UsageError(f"feature '{name}' has the shape {found[0].shape}: it must be a map, (N, C, H, W)")
    return found[0]


def _nodes(model: nn.Module, image: Tensor, called: dict[str, list[Feature]], name: str) -> list[Feature]:
    """The value of the node that is called ``name``."""
    try:
        graph: fx.GraphModule | None = capture(model, (image,))
    except CaptureError:
        graph = None
    nodes = {node.name: node for node in graph.graph.nodes} if graph is not None else {}
    if graph is None or name not in nodes:
        layers = [layer for layer, _ in model.named_modules() if layer]
        why = "is a layer that is not called in training" if name in layers else "is neither layer nor node"
        known = dict.fromkeys((*called, *nodes))
        raise UsageError(f"feature '{name}' {why}, of {type(model).__name__}{close_to(name, known)}")
    found = _seen(graph, nodes[name], Shapes(graph, (image,)), called)
    if found is None:
        raise UsageError(
            f"feature '{name}' is computed between functions, where it cannot be seen: name one that a layer gives, or "
            "takes first"
        )
    return [found]


def _modules(model: nn.Module, image: Tensor) -> dict[str, list[Feature]]:
    """What each module gives in training, a value a call, by the module's path; in the order of their ends."""
    found: dict[str, list[Feature]] = {}

    def leave(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        found.setdefault(name, []).append(Feature(name, name, True, (1, *shape[1:])))

    trial = copied(model, training=True)
    with watched([pair for pair in trial.named_modules() if pair[0]], leave=leave):
        output_of(trial, (torch.cat([image, image]),))
    return found


def _trunk(graph: fx.GraphModule, image: Tensor, called: dict[str, list[Feature]]) -> Iterator[Feature | None]:
    """What every path from image to output goes through, in order, behind the first layer that has parameters."""
    shapes, position = Shapes(graph, (image,)), {node: i for i, node in enumerate(graph.graph.nodes)}
    reached = set(downstream(graph.graph.find_nodes(op="placeholder")))
    outputs = list(graph.graph.find_nodes(op="output"))
    used = {*outputs, *downstream(outputs, up=True)}
    furthest, learnt = 0, False
    for node in sorted(reached & used, key=position.__getitem__):
        module = module_of(graph, node)
        learnt |= any(source.op == "get_attr" for source in node.all_input_nodes)
        learnt |= module is not None and next(module.parameters(), None) is not None
        if learnt and furthest <= position[node]:
            yield _seen(graph, node, shapes, called)
        furthest = max([furthest, *(position[reader] for reader in node.users if reader in used)])


def _seen(graph: fx.GraphModule, node: fx.Node, shapes: Shapes, called: dict[str, list[Feature]]) -> Feature | None:
    """The value of ``node``, where a module that is called once gives it or takes it; else None."""
    shape = shapes.of(node)
    if shape is None:
        return None
    readers = [reader for reader in node.users if reader.args and reader.args[0] is node]
    for caller in (node, *readers):
        if caller.op == "call_module" and len(called.get(str(caller.target), ())) == 1:
            return Feature(node.name, str(caller.target), caller is node, shape)
    return None
