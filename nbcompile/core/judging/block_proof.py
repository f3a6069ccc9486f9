"""The proof that something may stand for a block: it runs beside it, on what the block is given, and is compared.

Whole outputs would not do: behind the first block they differ by rounding, which a network that ranks its values or
rounds them makes into anything.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nbcompile.core.blocks import Expanded, sites
from nbcompile.core.copies import working_copy
from nbcompile.core.errors import PostconditionError, PreconditionError
from nbcompile.core.example import Inputs
from nbcompile.core.judging.judgment import judge
from nbcompile.core.numerics import is_finite
from nbcompile.core.running import output_of

Layer = Callable[[Tensor], Tensor]


def as_it_is(y: Tensor) -> Tensor:
    """What a block gives, read as it is."""
    return y


class Stand(NamedTuple):
    """What is to stand for a block.

    Attributes:
        layer: gives what ``read`` makes of the block's output, for the same input.
        read: what a reader of the block sees of its output; a norm, what lies about its mean.
    """

    layer: Layer
    read: Layer = as_it_is


def linear_copy(giant: nn.Module) -> nn.Module:
    """A copy of ``giant`` in eval mode, whose blocks run layer by layer, and are linear to the last digit."""
    copy = working_copy(giant, training=False)
    for block in sites(copy).values():
        block.collapsed = False
        block.slope.fill_(1.0)  # averages round
    return copy


def require_same_blocks(
    giant: nn.Module, stands: Callable[[str, Expanded], Stand], cases: Sequence[Inputs], who: str
) -> Any:
    """Run a copy of ``giant`` in eval mode, and at every call of a block what is to stand for it.

    A block is compared on all that it is given and, the first time, on a drawn input of that shape. One that the inputs
    do not reach is not proven.

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
    running = linear_copy(giant)
    found: list[str] = []
    drawn: set[str] = set()
    for name, block in sites(running).items():
        beside = partial(_beside, name, block, block.forward, stands(name, block), found, drawn)
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


def _beside(
    name: str, block: Expanded, forward: Layer, stand: Stand, found: list[str], drawn: set[str], x: Tensor
) -> Tensor:
    wanted = forward(x)
    cases = [] if found or not is_finite(wanted) else [(x, wanted)]
    if not found and name not in drawn:  # what arrives may be zero, or not finite: it would show nothing
        drawn.add(name)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
        if is_finite(other := forward(noise)):
            cases.append((noise, other))
    for given, expected in cases:
        found += filter(None, [_other(name, block, stand, given, expected)])
    return wanted


def _other(name: str, block: Expanded, stand: Stand, x: Tensor, wanted: Tensor) -> str:
    """What is wrong with what is to stand for a block; nothing, as a rule."""
    beside = block.forward
    object.__delattr__(block, "forward")
    try:
        judgment = judge(block, [((x,), stand.read(wanted))], [stand.layer(x)], read=stand.read)
    except Exception as reason:
        return f"what is to stand for '{name}' does not do what the block does: {type(reason).__name__}: {reason}"
    finally:
        object.__setattr__(block, "forward", beside)
    if judgment.passed:
        return ""
    return (
        f"what is to stand for '{name}' is another function than the block: relative error {judgment.error:.2e}"
        f"{judgment.place}, at most {judgment.limit} is rounding"
    )
