"""The proof that a tiny network is its giant: block by block, and by what both give."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nbcompile.core.blocks import Expanded, absorbers_of, sites
from nbcompile.core.copies import working_copy
from nbcompile.core.errors import PostconditionError, PreconditionError
from nbcompile.core.example import Inputs
from nbcompile.core.graph.replace import put
from nbcompile.core.judging.block_proof import Layer, Stand, linear_copy, require_same_blocks
from nbcompile.core.judging.judgment import judge
from nbcompile.core.numerics import TOLERANCE, relative_error
from nbcompile.core.running import output_of
from nbcompile.core.tracing.values import tensors_within


def require_contracted(giant: nn.Module, tiny: nn.Module, inputs: Inputs) -> None:
    """Run both on ``inputs``, as copies in eval mode.

    Args:
        giant: with blocks that count as linear.
        tiny: what it was contracted to.
        inputs: of both.

    Raises:
        PreconditionError: if the giant does not run on ``inputs``.
        PostconditionError: naming the first block that its layer is not, or whose shift is missed by what reads it.
    """

    def stand(name: str, block: Expanded) -> Stand:
        layer, keys = tiny.get_submodule(name), absorbers_of(name, block)
        if not keys:
            return Stand(layer)
        axes = block.spec.layer.axes  # of further norms the outputs tell
        theirs, ours = (_about(model.get_buffer(keys[0]), axes) for model in (giant, tiny))
        return Stand(lambda x: ours(layer(x)), theirs)

    wanted = require_same_blocks(giant, stand, (inputs,), "fuse")
    if any(block.spec.absorbers for block in sites(giant).values()):
        _require_same_outputs(giant, tiny, inputs, _numbers(wanted))


def _about(mean: Tensor, axes: int) -> Layer:
    """What lies about ``mean``, in each channel: a norm sees no more of a block than is left after that rounding."""
    centre = mean.double().view(-1, *(1,) * axes)
    return lambda y: (y.double() - centre).to(y.dtype)


def _require_same_outputs(giant: nn.Module, tiny: nn.Module, inputs: Inputs, wanted: Sequence[Tensor]) -> None:
    """What else reads a block whose shift went into a norm, no block tells."""
    made = _numbers(output_of(working_copy(tiny, training=False), inputs))
    if [x.shape for x in made] != [x.shape for x in wanted]:
        return  # code that chooses by values chose otherwise
    try:
        judgment = judge(linear_copy(giant), [(inputs, wanted)], [made], read=_numbers)
    except PreconditionError:
        return  # as above, by rounding alone
    if judgment.limit.telling and not judgment.passed:  # the blocks themselves are proven
        site, keys = _culprit(giant, tiny, inputs, wanted, judgment.limit.error)
        raise PostconditionError(
            f"fuse: the tiny network gives another output than the giant: relative error {judgment.error:.2e}"
            f"{judgment.place}, at most {judgment.limit} is rounding; the shift of '{site}' went into '{keys}', and "
            f"other code reads '{site}', too: fuse the model as expand returned it (proof=False leaves this check out)"
        )


def _culprit(
    giant: nn.Module, tiny: nn.Module, inputs: Inputs, wanted: Sequence[Tensor], limit: float
) -> tuple[str, str]:
    """The site, and where its shift went, that changes the giant's output when it is contracted alone; or the first."""
    shifted = {name: block for name, block in sites(giant).items() if block.spec.absorbers}
    for name, block in shifted.items():
        mixed = working_copy(giant, training=False)
        put(mixed, mixed.get_submodule(name), tiny.get_submodule(name))
        for key in absorbers_of(name, block):
            mixed.get_buffer(key).copy_(tiny.get_buffer(key))
        made = _numbers(output_of(mixed, inputs))
        if [x.shape for x in made] != [x.shape for x in wanted] or relative_error(made, wanted) > limit:
            break
    else:
        name, block = next(iter(shifted.items()))
    return name, "', '".join(absorbers_of(name, block))


def _numbers(output: Any) -> list[Tensor]:
    return [x for x in tensors_within(output) if x.dtype in TOLERANCE and bool(x.isfinite().all())]
