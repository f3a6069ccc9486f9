"""What lifting finds: affine nodes, and what they fit.

What kind of map a node is may depend on its surroundings: a factor fits any number of spatial axes, a pooling any
number of channels. So a :class:`Primitive` says what it fits, and builds the map once that is known.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from nbcompile.core.algebra import AffineMap, Geometry, average_pool, padding_map
from nbcompile.core.graph.aliasing import Aliasing
from nbcompile.core.graph.constants import Constants
from nbcompile.core.graph.nodes import argument, module_of, settled
from nbcompile.core.graph.operators import UNKNOWN, Operator, of_module
from nbcompile.core.graph.ranks import least_dimensions
from nbcompile.core.graph.shapes import Shapes
from nbcompile.core.layers import per_axis

ANY_AXES = frozenset({0, 1, 2, 3})
_OF_LAYERS = ("torch.nn.functional", "torch._C._nn")
Build = Callable[[torch.dtype | None, int, int], AffineMap]


@dataclass(frozen=True, eq=False)
class Primitive:
    """An affine node.

    Attributes:
        node: what computes it.
        source: the value that it is applied to.
        name: qualified name of its module, or the node's own name.
        axes: the numbers of spatial axes that it fits.
        inputs: channels that it takes; None for any number.
        layer: whether it is a convolution or linear layer.
        constants: numbers that it stores: weights and biases, two a channel for a frozen norm.
        build: its map in a dtype (None: its own), for a number of spatial axes and of input channels.
        parts: other nodes that belong to it and go with it.
        outer: whether it may stretch a value of one channel to many, as ``x * gamma`` does.
        cuts: whether it takes some of the channels.
        same: whether its result has the shape and dtype of what it takes.
    """

    node: fx.Node
    source: fx.Node
    name: str
    axes: frozenset[int]
    inputs: int | None
    layer: bool
    constants: int
    build: Build
    parts: tuple[fx.Node, ...] = ()
    outer: bool = False
    cuts: bool = False
    same: bool = False

    def map(self, axes: int, channels: int) -> AffineMap:
        """The map in float64."""
        return self.build(torch.float64, axes, channels)

    def geometry(self, axes: int, channels: int) -> Geometry:
        """All of the map but its numbers; nothing is copied."""
        return self.build(None, axes, channels).geometry


class Context:
    """What the rules of lifting know about one graph.

    Args:
        gm: the graph, in eval mode.
        shapes: of its values, for what a graph alone does not say.

    Attributes:
        aliasing: what is changed in place.
        constants: what does not depend on the inputs.
    """

    def __init__(self, gm: fx.GraphModule, shapes: Shapes) -> None:
        self.gm = gm
        self.shapes = shapes
        self.aliasing = Aliasing(gm)
        self.constants = Constants(gm, self.aliasing)
        self._least = least_dimensions(gm, self.constants)

    def norm(
        self, node: fx.Node, source: fx.Node, name: str, channels: int, build: Build, axes: int | None = None
    ) -> Primitive:
        """A frozen norm of ``channels``; one of 1-d maps also takes plain vectors, if it can be seen that they are."""
        fits = frozenset({1, 2, 3} if axes is None else {axes})
        if (axes == 1 or (axes is None and self._beside_linear(node, source))) and self.rank(source) == 2:
            fits = frozenset({0})
        return Primitive(node, source, name, fits, channels, False, 2 * channels, build, same=True)

    def _beside_linear(self, node: fx.Node, source: fx.Node) -> bool:
        beside = (source, *(settled(self.gm, node).users))
        return any(isinstance(module_of(self.gm, n), nn.Linear) or n.target is F.linear for n in beside)

    def rank(self, node: fx.Node) -> int | None:
        """Number of dimensions of a value, if it can be told: what ``flatten(1)`` gives has two."""
        here = node
        while True:
            module, source = module_of(self.gm, here), next(iter(here.all_input_nodes), None)
            if isinstance(module, nn.Flatten):
                if (module.start_dim, module.end_dim) == (1, -1):
                    return 2
            elif here.op != "call_module" and here.target in (torch.flatten, "flatten"):
                if (argument(here, 1, "start_dim", 0), argument(here, 2, "end_dim", -1)) == (1, -1):
                    return 2
            elif isinstance(module, (nn.Linear, _BatchNorm, nn.Dropout, nn.Identity, nn.ReLU)) and source is not None:
                here = source
                continue
            shape = self.shapes.of(node)
            return None if shape is None else len(shape)

    def why_wider(self, source: fx.Node, axes: int, dims: int) -> str | None:
        """Why a constant of ``dims`` dimensions may give ``source``, a map or a batch of maps, more, or None."""
        if dims <= axes + 1 or (dims == axes + 2 and self._least.get(source, 0) >= dims):
            return None
        shape = self.shapes.of(source)
        if shape is None:
            return f"'{source.name}' cannot be seen to have {dims} dimensions: fuse with an example_input"
        return None if dims <= len(shape) else f"'{source.name}' has fewer dimensions than the {dims} of its factor"

    def floating(self, node: fx.Node) -> bool:
        """Whether it can be seen that a value holds floating-point numbers: what an input holds, its reader tells."""
        dtype = self.shapes.dtype(node)
        if dtype is not None:
            return dtype.is_floating_point
        return node.op != "placeholder" or any(
            user.op == "call_module" or getattr(user.target, "__module__", None) in _OF_LAYERS for user in node.users
        )

    def pool(self, node: fx.Node, axes: int, options: tuple[Any, ...]) -> Primitive | str:
        """Average pooling over windows: ``(kernel, stride, padding, ceil_mode, count_include_pad, divisor)``."""
        kernel, stride, padding, ceil_mode, counts_pad, divisor = options
        kernel, stride, padding = (per_axis(v, axes) for v in (kernel, stride or kernel, padding))
        if ceil_mode:
            return "it pools with ceil_mode: its last window may be cut off"
        if any(padding) and not counts_pad:
            return "it pools without counting the padding: its divisor differs at the border"
        if divisor is not None:
            return "it pools with divisor_override"

        def build(dtype: torch.dtype | None, axes: int, channels: int) -> AffineMap:
            sides = tuple((p, p) for p in padding)
            return average_pool(kernel, stride, sides, channels, self.like(dtype))

        return Primitive(node, node.all_input_nodes[0], node.name, frozenset({axes}), None, False, 0, build)

    def pad(self, node: fx.Node, sides: list[int], mode: str, value: float | Tensor = 0.0) -> Primitive | str:
        """Explicit padding; ``sides`` as of ``F.pad``: ``(low, high)`` from the last axis back."""
        if any(side < 0 for side in sides):
            return "it crops: a padding is negative"
        given = [(sides[i], sides[i + 1]) for i in range(0, len(sides), 2)][::-1]
        least = len(given)

        def build(dtype: torch.dtype | None, axes: int, channels: int) -> AffineMap:
            like = self.like(dtype)
            values = torch.as_tensor(value, dtype=self.like(None).dtype, device=like.device).expand(channels)
            filled = values if bool(values.any()) else None
            return padding_map(((0, 0),) * (axes - least) + tuple(given), channels, like, mode, filled)

        fits = frozenset(n for n in (1, 2, 3) if n >= least)
        return Primitive(node, node.all_input_nodes[0], node.name, fits, None, False, 0, build)

    def like(self, dtype: torch.dtype | None) -> Tensor:
        """An empty tensor of the model's device, in ``dtype`` or the model's own."""
        tensors = itertools.chain(self.gm.parameters(), self.gm.buffers())
        first = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
        return torch.empty(0, dtype=dtype or first.dtype, device=first.device)


Rule = Callable[[Context, fx.Node, Operator, nn.Module | None], Primitive | str | None]
"""How an operator is lifted, as a function or module: its map, why it has none although it looks like one, or None."""


def owner(node: fx.Node) -> str:
    """Qualified name of the module that holds a constant which ``node`` reads; empty if there is none."""
    read = next((n for n in node.all_input_nodes[1:] if n.op == "get_attr"), None)
    return str(read.target).rpartition(".")[0] if read is not None else ""


def why_not_torchs(module: nn.Module) -> str | None:
    """Why a module may compute something else than the class of torch that it derives from, or None."""
    own = of_module(module) is UNKNOWN
    return f"its class {type(module).__name__} computes something of its own" if own else None
