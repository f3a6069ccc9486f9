"""The structure of a network as numbers: keys and shapes, and the cost of every layer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from nbcompile.core.blocks import sites
from nbcompile.core.copies import working_copy
from nbcompile.core.cost import cost
from nbcompile.core.example import Inputs
from nbcompile.core.graph.replace import put
from nbcompile.core.width.slices import narrowed
from nbcompile.core.width.widths import widths_of

PRODUCTS = "(other matrix products)"


@dataclass(frozen=True)
class ModuleCost:
    """One layer.

    Attributes:
        macs: multiply-accumulates per sample.
        params: elements of its own parameters.
    """

    macs: int
    params: int


def original_of(model: nn.Module) -> nn.Module:
    """A copy of ``model`` at its own width, with a layer of the original's class, without weights, for every block.

    It shows the architecture that a giant must come back to, from what ``expand`` recorded and not from any merge.
    """
    bare = working_copy(model, training=False) if widths_of(model) is None else narrowed(model).eval()
    for block in list(sites(bare).values()):
        layer = block.layer()
        for parameter in layer.parameters():
            parameter.data.zero_()
        put(bare, block, layer)
    return bare


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in the state_dict."""
    return {key: tuple(value.shape) for key, value in model.state_dict().items() if isinstance(value, Tensor)}


def rows(model: nn.Module, inputs: Inputs) -> dict[str, ModuleCost]:
    """The cost of every module that has parameters or multiplies."""
    return {layer.name: ModuleCost(layer.macs, layer.params) for layer in cost(model, inputs).layers}


def deploy_rows(model: nn.Module, inputs: Inputs) -> dict[str, ModuleCost]:
    """The cost of every convolution and linear layer of a deploy form, and of all other products as one row."""
    costs: dict[str, ModuleCost] = {}
    for layer in cost(model, inputs).layers:
        if layer.macs and layer.kind.startswith(("Conv", "Linear")):
            costs[layer.name] = ModuleCost(layer.macs, layer.params)
        elif layer.macs:  # an attention: in a file, its products bear other names
            costs[PRODUCTS] = ModuleCost(layer.macs + (costs[PRODUCTS].macs if PRODUCTS in costs else 0), 0)
    return costs


def file_rows(layers: Iterable[tuple[str, ModuleCost]], wanted: Mapping[str, ModuleCost]) -> dict[str, ModuleCost]:
    """The layers of a deploy file, in the terms of :func:`deploy_rows`.

    Args:
        layers: name and cost of every layer in the file.
        wanted: what it is compared with; only where that has other products do unknown names count among them.
    """
    costs: dict[str, ModuleCost] = {}
    for name, row in layers:
        if name in wanted or PRODUCTS not in wanted:
            costs[name] = row
        else:
            costs[PRODUCTS] = ModuleCost(row.macs + (costs[PRODUCTS].macs if PRODUCTS in costs else 0), 0)
    return costs


def holding(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """``model`` with ``tensors`` where they fit; where keys or shapes differ, a bare module that just holds them.

    The bare module cannot be run: it is for the comparison that will name the first difference.
    """
    wanted = shapes(model)
    if {key: tuple(value.shape) for key, value in tensors.items()} == wanted:
        model.load_state_dict(dict(tensors))
        return model
    bare = nn.Module()
    for key, value in tensors.items():
        *path, name = key.split(".")
        module = bare
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_buffer(name, value)
    return bare
