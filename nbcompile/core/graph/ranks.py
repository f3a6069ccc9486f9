"""How many dimensions values have at least, as far as a graph shows it: layers take maps without a batch, too."""

from typing import Any

from torch import Tensor, fx

from nbcompile.core.graph.constants import Constants
from nbcompile.core.graph.nodes import argument, module_of
from nbcompile.core.graph.operators import called, named, of_module

BATCHED = 5
"""Dimensions of a batch of maps of three axes: of what has a batch for sure, however many axes it has."""

DIMENSIONS = "dimensions"
"""Key in the ``meta`` of a placeholder: how many dimensions it has, where that was seen."""


def least_dimensions(gm: fx.GraphModule, constants: Constants) -> dict[fx.Node, int]:
    """The number of dimensions that the value of each node has at least; 0 where nothing shows it.

    Args:
        gm: a graph whose placeholders may say how many they have (``DIMENSIONS``).
        constants: of the graph.

    A batch norm takes the channels from dimension 1: what it takes has a batch. A constant of four dimensions gives
    every sum and product that it is in as many.
    """
    least: dict[fx.Node, int] = {}
    for node in gm.graph.nodes:
        module, inputs = module_of(gm, node), node.all_input_nodes
        does = called(node) if module is None else of_module(module)
        if node.op == "placeholder":
            least[node] = node.meta.get(DIMENSIONS, 0)
        elif does is named("batch_norm"):
            least[node] = BATCHED
        elif does is named("flatten"):
            start = argument(node, 1, "start_dim", 0) if module is None else module.start_dim
            least[node] = 2 if start == 1 else 0
        elif does.broadcasts:
            least[node] = max((_of(n, least, constants) for n in inputs), default=0)
        else:
            keeps = does.keeps_rank and not getattr(module, "return_indices", False)
            least[node] = least[inputs[0]] if keeps and inputs else 0
    return least


def _of(node: fx.Node, least: dict[fx.Node, int], constants: Constants) -> int:
    value: Any = constants.value(node)
    return value.ndim if isinstance(value, Tensor) else least[node]
