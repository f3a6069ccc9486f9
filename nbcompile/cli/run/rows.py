"""What several commands tell of a network, JSON-able."""

from typing import Any

from torch import nn

from nbcompile.core.blocks import sites
from nbcompile.wide.widths import widths_of
from nbcompile.widening import width_groups


def sites_json(network: nn.Module) -> list[dict[str, Any]]:
    """The sites of a giant: name, slope, step and what the block is."""
    return [
        {"name": name, "slope": float(block.slope), "step": [int(v) for v in block.ramp], **block.spec.to_json()}
        for name, block in sites(network).items()
    ]


def groups_json(network: nn.Module) -> list[dict[str, Any]]:
    """The groups of channels of a giant in width, by name; none where it is not one."""
    return [] if widths_of(network) is None else [{"name": n, **group} for n, group in width_groups(network).items()]


def cost_json(costs: Any) -> dict[str, int] | None:
    """What a `nbcompile.Cost` counts; None where it is not known."""
    if costs is None:
        return None
    names = ("macs", "flops", "params", "norm_params", "bias_params", "norm_elements", "unread_params")
    return {name: getattr(costs, name) for name in names}
