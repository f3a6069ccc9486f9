"""Contract expansion blocks back to the layers they came from.

    y = block(x)     =>     y = layer(x)

The merged shift goes into the layer's bias or, where it has none, into the running mean of every norm that reads it
(``mean - shift``): decided at expand, so that this pass never finds out after days of training. Computed in float64,
block by block, and rounded once.

Source: NetBooster (arXiv 2306.13586) sec. 3.4 (Eq. 3-4); norms: design by algebra, R1 and R3 of the DBB rules.
"""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, fx, nn

from nbcompile.core.algebra import AffineMap
from nbcompile.core.blocks import SLOPE_ROUNDING, Expanded, absorbers_of, sites
from nbcompile.core.errors import PostconditionError, PreconditionError
from nbcompile.core.graph.owners import Owners
from nbcompile.core.graph.replace import put_all
from nbcompile.core.layers import LayerSpec, stored_weight, why_more_runs
from nbcompile.core.tracing.observe import is_observed
from nbcompile.passes.base import Pass, PassResult
from nbcompile.passes.sites.absorbers import absorbers


@dataclass(frozen=True)
class ContractSites(Pass):
    """Contracts expansion blocks to the layers they came from.

    Attributes:
        force: contract blocks whose slope is not 1, too: as if it were.
    """

    name: ClassVar[str] = "contract-sites"

    force: bool = False

    def requires(self, gm: fx.GraphModule) -> None:
        """Finite parameters, slopes of 1, and nothing that was added to what a block runs."""
        _require_finite(gm)
        for site, block in sites(gm).items():
            for name, module in block.named_modules(prefix=site):
                if reason := why_more_runs(module):
                    raise PreconditionError(f"{self.name}: '{name}' cannot be contracted: {reason}")
        bent = {n: b for n, b in sites(gm).items() if not b.linear}
        if bent and not self.force:
            raise PreconditionError(_bent(bent, len(sites(gm))))

    def call(self, gm: fx.GraphModule) -> PassResult:
        """Contract every block."""
        blocks = sites(gm)
        owners = Owners(gm)
        put_all(gm, {block: _contracted(owners, name, block) for name, block in blocks.items()})
        return PassResult(gm, tuple(blocks))

    def ensures(self, gm: fx.GraphModule) -> None:
        """No block is left."""
        if left := sites(gm):
            raise PostconditionError(f"{self.name}: blocks are left: {', '.join(left)}")


def _contracted(owners: Owners, name: str, block: Expanded) -> nn.Module:
    with torch.no_grad():
        whole = block.merged(torch.float64)
        layer = block.layer()
        _check_geometry(name, whole, LayerSpec.of(layer))
        cast(Tensor, layer.weight).copy_(stored_weight(whole))
        if isinstance(bias := layer.bias, Tensor):
            if whole.bias is None:
                bias.zero_()
            else:
                bias.copy_(whole.bias)
        elif whole.bias is not None:
            for key in _absorbers(owners, name, block):
                mean = owners.buffers[key]
                mean.copy_(mean.double() - whole.bias)
                if not bool(mean.isfinite().all()):
                    raise PreconditionError(
                        f"contract-sites: the shift of '{name}' is too large for {mean.dtype} in '{key}'"
                    )
        if not all(bool(p.isfinite().all()) for p in layer.parameters()):
            raise PreconditionError(
                f"contract-sites: the merged weight of '{name}' is too large for {layer.weight.dtype}"
            )
    return layer


def _absorbers(owners: Owners, name: str, block: Expanded) -> tuple[str, ...]:
    """The keys recorded at expand, under the prefix at which the expanded model now hangs in the graph."""
    recorded = block.spec.name
    if not name.endswith(recorded):
        raise PreconditionError(
            f"contract-sites: the block at '{name}' was expanded as '{recorded}': fuse the model that expand returned"
        )
    keys = absorbers_of(name, block)
    if not keys:
        raise PostconditionError(f"contract-sites: the shift of '{name}' has neither a bias nor a norm to go to")
    buffers = owners.buffers
    if lost := [key for key in keys if key not in buffers or buffers[key].shape != (block.spec.layer.outputs,)]:
        raise PreconditionError(
            f"contract-sites: '{name}' needs '{lost[0]}' to take its shift, and the model no longer has it: "
            "norms must stay as they were when it was expanded"
        )
    _require_same_readers(owners, name, block, keys)
    return keys


def _require_same_readers(owners: Owners, name: str, block: Expanded, keys: tuple[str, ...]) -> None:
    """Where the graph shows who reads the block, these must still be the norms of ``keys`` and nothing else."""
    if is_observed(owners.gm) or block not in owners.calls:
        return
    if set(absorbers(owners, block.spec.layer, owners.calls[block])) != set(keys):
        raise PreconditionError(
            f"contract-sites: '{name}' is not read by the norms {', '.join(keys)} alone, as when it was expanded: "
            "its shift would be lost; fuse the model as expand returned it"
        )


def _check_geometry(name: str, whole: AffineMap, spec: LayerSpec) -> None:
    """The merged map must be the layer's own shape; anything else is a bug of ours."""
    mode = spec.padding_mode if any(low or high for low, high in spec.padding_sides) else "zeros"
    wanted = (
        *(spec.kernel, spec.stride, spec.padding_sides, spec.groups, mode),
        *(spec.transposed, spec.output_padding),
    )
    merged = (
        *(whole.kernel, whole.stride, whole.padding, whole.groups, whole.padding_mode),
        *(whole.transposed, whole.output_padding),
    )
    dilated = any(k > 1 and a != b for k, a, b in zip(spec.kernel, spec.dilation, whole.dilation, strict=True))
    if merged != wanted or dilated:
        raise PostconditionError(f"contract-sites: block '{name}' merged to {merged}, not to the layer's {wanted}")


def _require_finite(gm: nn.Module) -> None:
    if key := not_finite(gm):
        raise PreconditionError(
            f"contract-sites: '{key}' holds NaN or Inf: training diverged; take an earlier checkpoint"
        )


def not_finite(model: nn.Module) -> str:
    """The first key whose values make a network worthless; empty if there is none.

    That is NaN anywhere, and infinities but in buffers that are no statistics: limits and masks.
    """
    merged = {id(x) for block in sites(model).values() for x in block.state_dict(keep_vars=True).values()}
    for key, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        plain = id(value) not in merged and not isinstance(value, nn.Parameter) and "running_" not in key
        if bool(value.isnan().any() if plain else ~value.isfinite().all()):
            return key
    return ""


def _bent(bent: dict[str, Expanded], total: int) -> str:
    name, block = min(bent.items(), key=lambda item: float(item[1].slope))
    step, start, steps = (int(v) for v in block.ramp)
    head = (
        f"contract-sites: {len(bent)} of {total} sites are not linear yet: "
        f"'{name}' has slope {float(block.slope):.6g}, not 1.0, so its block is not one layer"
    )
    scheduled = min(max((step - start) / steps, 0.0), 1.0) if steps else 0.0
    if abs(scheduled - float(block.slope)) > SLOPE_ROUNDING:  # only PLT moves a slope, and it moves the ramp with it
        return (
            f"{head}; its schedule stands at {scheduled:.6g}, so this is a lagging average (EMA) of the slopes: give "
            "the averaged model to PLT(giant, ..., also=[ema.module]), or fuse the model itself (--key)"
        )
    remaining = f"{start + steps - step:,} optimiser steps remain" if steps else "no PLT has run on it"
    return (
        f"{head}; {remaining}. Train on with PLT, or fuse with force=True (--force) and accept that the output changes"
    )
