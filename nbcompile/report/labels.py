"""Short names for what a layer is, shared by the drawn graphs and the tables."""

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

from nbcompile.core.blocks import Expanded, absorbers_of


def layer_label(module: nn.Module) -> str:
    """What ``module`` is, in a few characters: ``conv 3×3 /2 3→32``, ``linear 64→10``, ``BatchNorm2d``."""
    if isinstance(module, _ConvNd):
        kind = "convT" if module.transposed else "conv"
        if module.groups > 1:
            kind = "depthwise" if module.groups == module.in_channels else f"{kind} (g {module.groups})"
        stride = "" if set(module.stride) == {1} else f" /{_size(module.stride)}"
        return f"{kind} {_kernel(module.kernel_size)}{stride} {_widths(module.in_channels, module.out_channels)}"
    if isinstance(module, Expanded):
        return f"{module.spec.block} ×{module.spec.ratio}"
    if isinstance(module, nn.Linear):
        return f"linear {_widths(module.in_features, module.out_features)}"
    return type(module).__name__


def _widths(inputs: int, outputs: int) -> str:
    return str(inputs) if inputs == outputs else f"{inputs}→{outputs}"


def _size(values: Sequence[int]) -> str:
    """One number where all dimensions agree, else all of them."""
    return str(values[0]) if len(set(values)) == 1 else "×".join(map(str, values))


def _kernel(values: Sequence[int]) -> str:
    return "×".join(map(str, values))


def absorbing_norms(site: str, block: Expanded) -> tuple[str, ...]:
    """The names of the norms that take the shift of ``block``; empty where the layer's own bias does.

    Args:
        site: the block's qualified name in the network at hand, which may be a wrapper of the expanded one.
        block: the block.
    """
    return tuple(key.rpartition(".")[0] for key in absorbers_of(site, block))
