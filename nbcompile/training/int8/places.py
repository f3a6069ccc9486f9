"""Which value of a graph is which tensor of the file that is made of it.

What holds the same numbers is the same value: the graph and the file are run on the same inputs, and their numbers are
compared in sorted order, which neither layout nor shape changes. Nothing need be known of how a graph is lowered.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from nbcompile.core.example import Inputs
from nbcompile.exporters.to_tflite.file.flatbuffer import File

SUMS = 1e-4
"""Of the largest number: sums of float32 in another order differ by less."""

Numbers = np.ndarray


def sorted_numbers(values: Iterable[Any]) -> Numbers:
    """The numbers of one value on several inputs, each sorted by itself."""
    return np.concatenate([np.sort(np.asarray(x, np.float64).ravel()) for x in values])


def same_numbers(one: Numbers, other: Numbers) -> bool:
    """Whether these are the same numbers, up to rounding."""
    return one.size == other.size and bool(np.abs(one - other).max() <= SUMS * np.abs(other).max())


def numbers_in_graph(graph: fx.GraphModule, samples: Sequence[Inputs]) -> dict[fx.Node, Numbers]:
    """What the float tensors of a graph hold, in its order."""
    found: dict[fx.Node, list[Tensor]] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor) and result.is_floating_point() and n.op not in ("output", "get_attr"):
                found.setdefault(n, []).append(result.detach().clone())  # what follows may write into it
            return result

    with torch.no_grad():
        for sample in samples:
            Watch(graph).run(*sample)
    return {node: sorted_numbers(values) for node, values in found.items()}


def numbers_in_file(values: Sequence[Mapping[int, np.ndarray]]) -> dict[int, Numbers]:
    """What the float tensors of a file hold, by index, inputs first, then in the order of execution."""
    first = values[0]
    return {i: sorted_numbers(one[i] for one in values) for i, x in first.items() if x.dtype == np.float32}


def matched(tensors: Mapping[int, Numbers], nodes: Mapping[fx.Node, Numbers]) -> dict[int, fx.Node]:
    """The node of each tensor that has one; of several that hold the same numbers the first is the first's."""
    found: dict[int, fx.Node] = {}
    taken: list[tuple[list[fx.Node], list[int]]] = []
    for index, numbers in tensors.items():
        known = next((one for one in taken if same_numbers(numbers, nodes[one[0][0]])), None)
        if known is None:
            alike = [node for node, held in nodes.items() if same_numbers(numbers, held)]
            if not alike:
                continue
            known = (alike, [])
            taken.append(known)
        alike, before = known
        found[index] = alike[min(len(before), len(alike) - 1)]
        before.append(index)
    return found


def layer_with(weight: np.ndarray, graph: fx.GraphModule) -> str | None:
    """The name of the module in ``graph`` that has a weight of these numbers."""
    numbers = sorted_numbers([weight])
    for node in graph.graph.find_nodes(op="call_module"):
        held = getattr(graph.get_submodule(str(node.target)), "weight", None)
        if isinstance(held, nn.Parameter) and same_numbers(sorted_numbers([held.detach()]), numbers):
            return str(node.target)
    return None


def names(file: File, indices: Iterable[int]) -> list[str]:
    """Of tensors."""
    return [file.tensors[i].name for i in indices]
