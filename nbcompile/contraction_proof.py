"""The proof that a tiny network is its giant: block by block, and by what both give."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from nbcompile.core.block_proof import Layer, require_same_blocks
from nbcompile.core.blocks import Expanded, sites
from nbcompile.core.errors import NBCompileError, PostconditionError, PreconditionError
from nbcompile.core.example import Inputs
from nbcompile.core.numerics import ROUNDINGS, TOLERANCE, own_rounding, relative_error
from nbcompile.core.running import output_of
from nbcompile.core.tracing.values import tensors_within
from nbcompile.core.wrappers import working_copy
from nbcompile.report.errors_by_layer import per_layer_error


def require_contracted(giant: nn.Module, tiny: nn.Module, inputs: Inputs) -> None:
    """Run both on ``inputs``, as copies in eval mode.

    Args:
        giant: with blocks that count as linear.
        tiny: what it was contracted to.
        inputs: of both.

    Raises:
        PreconditionError: if the giant does not run on ``inputs``.
        PostconditionError: naming the first block that its layer is not, or, where more than norms read a block whose
            shift they took, the first layer that gives something else.
    """
    means = dict(giant.named_buffers(remove_duplicate=False))

    def layer(name: str, block: Expanded) -> Layer:
        stand = tiny.get_submodule(name)
        prefix = name.removesuffix(block.spec.name)
        for key in block.spec.absorbers[:1]:  # of further ones the outputs tell
            shift = (means[prefix + key].double() - tiny.get_buffer(prefix + key).double()).to(block.slope.device)
            shift = shift.view(-1, *(1,) * block.spec.layer.axes)
            return lambda x: (stand(x).double() + shift).to(x.dtype)
        return stand

    wanted = require_same_blocks(giant, layer, (inputs,), "fuse")
    if any(block.spec.absorbers for block in sites(giant).values()):
        _require_same_outputs(giant, tiny, inputs, _numbers(wanted))


def _require_same_outputs(giant: nn.Module, tiny: nn.Module, inputs: Inputs, wanted: Sequence[Tensor]) -> None:
    """What else reads a block whose shift went into a norm, no block tells."""
    made = _numbers(output_of(working_copy(tiny, training=False), inputs))
    if [x.shape for x in made] != [x.shape for x in wanted]:
        return  # code that chooses by values chose otherwise
    error, limit = relative_error(made, wanted), max((TOLERANCE[x.dtype] for x in wanted), default=0.0)
    if error > limit:
        rounding = working_copy(giant, training=False)
        rounding.register_forward_hook(lambda *call: _numbers(call[-1]))
        try:
            limit = max(limit, ROUNDINGS * own_rounding(rounding, [(inputs, wanted)]))
        except PreconditionError:
            return  # as above, by rounding alone
    if error > limit:
        raise PostconditionError(
            f"fuse: the tiny network gives another output than the giant, {_first(giant, tiny, inputs, limit)}: "
            f"relative error {error:.2e}, at most {limit:.0e} is rounding; other code than the norms that took the "
            "shift of a block may read it: fuse the model as expand returned it, or with proof=False if it may differ"
        )


def _first(giant: nn.Module, tiny: nn.Module, inputs: Inputs, limit: float) -> str:
    with suppress(NBCompileError):
        for row in per_layer_error(giant, tiny, inputs):
            if row.error is not None and not row.error <= limit:
                return f"first at '{row.name}'"
    return "in what it returns"


def _numbers(output: Any) -> list[Tensor]:
    return [x for x in tensors_within(output) if x.dtype in TOLERANCE and bool(x.isfinite().all())]
