"""Runtimes of deploy files compute in float32: their kernels for other floating-point dtypes are few."""

import torch
from torch import nn

from nbcompile.core.copies import working_copy
from nbcompile.core.errors import PreconditionError
from nbcompile.core.example import Inputs, change_tensors
from nbcompile.core.running import output_of
from nbcompile.core.words import first_line


def in_float32(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs, str]:
    """A copy of ``model``, and ``inputs``, in float32, where every floating-point parameter has another dtype.

    A network that mixes dtypes is left to its own.

    Args:
        model: left as it is.
        inputs: what it is called with; left as they are.

    Returns:
        Both, and a sentence that says so; as they were, and an empty one, where there is nothing to do.

    Raises:
        PreconditionError: if it does not run in float32, since its own code asks for another dtype.
    """
    dtypes = {x.dtype for x in model.parameters() if x.is_floating_point()}
    dtypes = dtypes or {x.dtype for x in inputs if x.is_floating_point()}
    if not dtypes or torch.float32 in dtypes:
        return model, inputs, ""
    names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    made = working_copy(model).float()
    given = change_tensors(lambda x: x.float() if x.is_floating_point() else x, inputs)
    try:
        output_of(made, given)
    except Exception as error:  # whatever layers say of dtypes that differ
        raise PreconditionError(
            f"{type(model).__name__} computes in {names}, a file in float32, where it does not run "
            f"({first_line(error)}): cast to no dtype of its own in its forward"
        ) from error
    return (
        made,
        given,
        f"the network computes in {names}, the file in float32, and it was compared with the network in float32",
    )
