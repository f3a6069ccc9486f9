"""Putting a module in the place of another."""

from torch import nn

from nbcompile.core.graph.nodes import aliases


def put(tree: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace ``old`` by ``new`` in ``tree``, under every name it has there."""
    for name in aliases(tree, old):
        tree.set_submodule(name, new)
