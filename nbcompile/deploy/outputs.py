"""What a network gives must be something that a file can hold."""

from torch import nn
from torch.func import functional_call

from nbcompile.core.errors import PreconditionError
from nbcompile.core.example import Inputs
from nbcompile.core.numerics import placed_tensors
from nbcompile.core.running import rehearsal


def require_outputs(model: nn.Module, inputs: Inputs) -> None:
    """Check that ``model`` gives real tensors for ``inputs``.

    Args:
        model: in eval mode; left as it is.
        inputs: what it is called with.

    Raises:
        PreconditionError: if it gives none, or something else, or does not run.
    """
    with rehearsal(model, inputs) as (buffers, copies):
        found = placed_tensors(functional_call(model, buffers, copies))
        if not found:
            raise PreconditionError(f"{type(model).__name__} gives no tensor: return from its forward what is computed")
        for place, x in found:
            if x.is_complex():
                raise PreconditionError(
                    f"{place} of {type(model).__name__} is complex, which no file holds: return torch.view_as_real of "
                    "it"
                )
