"""How much memory a graph's values need on a microcontroller, without converting it: which are alive when.

A cheap model of what TFLite Micro does with the int8 file of a graph: one byte a value, operators in graph order, ReLU
and ReLU6 computed by the layer or sum before them, an operator of its own for padding that a convolution or pooling
cannot do itself. For searches; the file has the last word.
"""

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import fx

from nbcompile.core.activations import Activation
from nbcompile.core.algebra.same_padding import is_same, read_padding
from nbcompile.core.example import Inputs
from nbcompile.core.graph.nodes import activation_of, asks_metadata, layer_of, module_of, passes_through, readers
from nbcompile.core.graph.operators import ADD, called, of_module
from nbcompile.core.graph.shapes import Shapes
from nbcompile.core.layers import lift, per_axis, why_no_layer
from nbcompile.core.memory.arena import Buffer, height

_FUSED = {Activation("relu"), Activation("relu6")}
Sides = Sequence[tuple[int, int]]


class Lifetimes:
    """The values of a graph that are in memory when its int8 file runs, one sample at a time.

    Attributes:
        buffers: in graph order; step ``-1`` is before the first operator.
        steps: when the value of each node is written.
    """

    def __init__(self, gm: fx.GraphModule, inputs: Inputs) -> None:
        """Walk over ``gm``.

        Args:
            gm: in deploy form.
            inputs: of the model.

        Raises:
            PreconditionError: if it does not run on ``inputs``.
        """
        self._gm, self._shapes = gm, Shapes(gm, inputs)
        self._all: list[Buffer] = []
        self._home: dict[fx.Node, int] = {}
        self._step = -1
        for node in gm.graph.nodes:
            if node.op == "placeholder" or any(source in self._home for source in node.all_input_nodes):
                self._visit(node)
        self.buffers = tuple(buffer for buffer in self._all if buffer.nbytes)
        self.steps = {node: self._all[home].first for node, home in self._home.items()}

    @property
    def arena(self) -> int:
        """Bytes that the planner needs."""
        return height(self.buffers)

    def alive(self, step: int) -> tuple[Buffer, ...]:
        """What is in memory at a step."""
        return tuple(buffer for buffer in self.buffers if buffer.first <= step <= buffer.last)

    def bytes_at(self, step: int) -> int:
        """How much that is: at no step can a planner do with less."""
        return sum(buffer.size for buffer in self.alive(step))

    def peak(self) -> tuple[Buffer, ...]:
        """What is in memory at the step with the most bytes alive."""
        return self.alive(max(range(-1, self._step + 1), key=self.bytes_at))

    def _visit(self, node: fx.Node) -> None:
        if asks_metadata(node):
            return
        read = {self._home[source] for source in node.all_input_nodes if source in self._home}
        if node.op == "output":
            self._keep(read)
            return
        home = self._shared(node)
        if home is None:
            sides = self._padding(node)
            if sides is not None:
                self._step += 1
                self._keep(read)
                read = {self._new(f"padding of {_name(node)}", self._bytes(node.all_input_nodes[0], sides))}
            self._step += node.op != "placeholder"
            self._keep(read)
            home = self._new(_name(node), self._bytes(node))
        self._home[node] = home

    def _new(self, name: str, nbytes: int) -> int:
        self._all.append(Buffer(name, nbytes, self._step, self._step))
        return len(self._all) - 1

    def _keep(self, homes: Iterable[int]) -> None:
        """These are read at this step."""
        for home in homes:
            buffer = self._all[home]
            self._all[home] = Buffer(buffer.name, buffer.nbytes, buffer.first, self._step)

    def _shared(self, node: fx.Node) -> int | None:
        """Whose memory ``node`` gives again: that of an identity's input, or of the layer that it becomes a part of."""
        source = next((n for n in node.all_input_nodes if n in self._home), None)
        if source is None:
            return None
        fuses = layer_of(self._gm, source) is not None or called(source) is ADD
        fused = fuses and activation_of(self._gm, node) in _FUSED and len(readers(source)) == 1
        return self._home[source] if fused or passes_through(self._gm, node) else None

    def _bytes(self, node: fx.Node, sides: Sides = ()) -> int:
        """One for every value of one sample, four for whole numbers; with ``sides``, of the padded map."""
        shape, dtype = self._shapes.of(node), self._shapes.dtype(node)
        if shape is None or dtype is None:
            return 0
        sizes = list(shape[1:])
        for axis, (low, high) in enumerate(reversed(sides), start=1):
            sizes[-axis] += low + high
        return prod(sizes) * (1 if dtype.is_floating_point or dtype is torch.bool else 4)

    def _padding(self, node: fx.Node) -> Sides | None:
        """``(low, high)`` per spatial axis of a padding that is an operator of its own, or None."""
        shape = self._shapes.of(node.all_input_nodes[0]) if node.all_input_nodes else None
        module: Any = module_of(self._gm, node)
        if shape is None or module is None:
            return None
        windows = _windows(module)
        along = list(zip(shape[len(shape) - len(windows) :], windows, strict=True))
        if all(padding == (0, 0) for *_, padding in windows) or all(is_same(n, *window) for n, window in along):
            return None
        return [read_padding(n, *window) for n, window in along]


def _windows(module: Any) -> list[tuple[int, int, tuple[int, int]]]:
    """``(reach, stride, (low, high))`` per spatial axis of a convolution or pooling."""
    if why_no_layer(module) is None:
        g = lift(module, module.weight.dtype, module.weight.ndim - 2).geometry
        return list(zip(g.reach, g.stride, g.padding, strict=True)) if g.pads else []
    does = of_module(module)
    if not does.pooling or does.axes > 2:  # TFLite has none over three axes
        return []
    each = (per_axis(v, does.axes) for v in (module.kernel_size, module.stride, module.padding))
    return [(kernel - 1, stride, (padding, padding)) for kernel, stride, padding in zip(*each, strict=True)]


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op in ("call_module", "placeholder") else node.name
