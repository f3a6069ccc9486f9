"""The proof that something may stand for a block: it runs beside it, on what the block is given, and is compared.

Whole outputs would not do: behind the first block they differ by rounding, which a network that ranks its values or
rounds them makes into anything.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from nbcompile.core.blocks import Expanded, sites
from nbcompile.core.copies import working_copy
from nbcompile.core.errors import PostconditionError, PreconditionError
from nbcompile.core.example import Inputs
from nbcompile.core.numerics import is_finite, relative_error, tolerance
from nbcompile.core.rounding import allowed
from nbcompile.core.running import output_of

Layer = Callable[[Tensor], Tensor]


def require_same_blocks(
    giant: nn.Module, stands: Callable[[str, Expanded], Layer], cases: Sequence[Inputs], who: str
) -> Any:
    """Run a copy of ``giant`` in eval mode, and at every call of a block what is to stand for it.

    A block that the inputs do not reach, or whose output is not finite, is not proven.

    Args:
        giant: with blocks that count as linear; left as it is.
        stands: gives what is to stand for a block of the copy, by the block's name.
        cases: inputs of the giant, which runs on the first; others are for where it takes them.
        who: the verb, named in errors.

    Returns:
        What the giant gave for the first inputs.

    Raises:
        PreconditionError: if the giant does not run on the first inputs.
        PostconditionError: naming the first block for which something else would stand.
    """
    running = working_copy(giant, training=False)
    found: list[str] = []
    for name, block in sites(running).items():
        block.collapsed = False
        block.slope.fill_(1.0)  # averages round
        beside = partial(_beside, name, block, block.forward, stands(name, block), found)
        object.__setattr__(block, "forward", beside)  # no hooks: they see what other hooks made of it
    outputs: list[Any] = []
    for inputs in cases:
        try:
            outputs.append(output_of(running, inputs))
        except Exception as error:
            if not outputs and not found:
                raise PreconditionError(
                    f"{who}: {type(giant).__name__} does not run on the example input, on which its blocks are to be "
                    f"proven (proof=False leaves that out): {type(error).__name__}: {error}"
                ) from error
        if found:
            raise PostconditionError(f"{who}: {found[0]}")
    return outputs[0]


def _beside(name: str, block: Expanded, forward: Layer, stand: Layer, found: list[str], x: Tensor) -> Tensor:
    wanted = forward(x)
    if found or not is_finite(wanted):
        return wanted
    try:
        error = relative_error(stand(x), wanted)
    except Exception as reason:
        found.append(
            f"what is to stand for '{name}' does not do what the block does: {type(reason).__name__}: {reason}"
        )
        return wanted
    if error <= tolerance(wanted.dtype):
        return wanted
    alone = working_copy(block)
    object.__delattr__(alone, "forward")
    limit = allowed(alone, [((x,), wanted)], error)
    if error > limit.error:
        found.append(
            f"what is to stand for '{name}' is another function than the block: relative error {error:.2e}, at most "
            f"{limit} is rounding"
        )
    return wanted
