"""What stands in a giant for one layer, drawn by itself."""

import operator
from typing import cast

from torch import fx, nn

from nbcompile.core.activations import linearised
from nbcompile.core.blocks import Expanded, Stage, sites
from nbcompile.report.data import Graph
from nbcompile.report.graphs import graph_of


def block_graph(giant: nn.Module, site: str) -> Graph:
    """The expansion block at ``site``, drawn by itself: what stands in the giant for one layer.

    Args:
        giant: a network with expansion blocks.
        site: the name of one of them; KeyError for any other name.
    """
    return graph_of(opened_block(sites(giant)[site]), {site}, f"What stands in the giant for {site}", within=site)


def opened_block(block: Expanded) -> fx.GraphModule:
    """The graph of what ``block`` computes while it is not collapsed, written from its parts and sharing them.

    It is not traced: to capture, a block is one node, and ``torch.fx.Tracer`` patches ``nn.Module`` for every thread.
    """
    graph = fx.Graph()
    x = graph.placeholder("x")
    slope, y = graph.get_attr("slope"), x
    for i, stage in enumerate(block.stages):
        y = graph.call_module(f"stages.{i}.layer", (y,))
        if stage.norm is not None:
            y = graph.call_module(f"stages.{i}.norm", (y,))
        activation = cast(Stage, stage).activation
        y = graph.call_function(linearised, (y, slope, activation.name, activation.parameter))
    y = graph.call_module("last", (y,))
    if block.last_norm is not None:
        y = graph.call_module("last_norm", (y,))
    if block.original is not None:
        y = graph.call_function(operator.add, (graph.call_module("original", (x,)), y))
    graph.output(y)
    return fx.GraphModule(block, graph)
