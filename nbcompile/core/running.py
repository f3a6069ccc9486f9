"""Running a model so that the run leaves no trace on it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nbcompile.core.errors import PreconditionError
from nbcompile.core.example import Inputs, change_tensors


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside; each back in its own mode after.

    Flags are set one by one: a model's own ``eval`` may do more, such as merging weights.
    """
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def rehearsal(model: nn.Module, inputs: Inputs) -> Iterator[tuple[dict[str, Tensor], Inputs]]:
    """Buffers and inputs to run ``model`` with: copies; inside is eval mode without gradients, random state is kept.

    Raises:
        PreconditionError: for whatever is raised inside.
    """
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    inputs = change_tensors(Tensor.clone, inputs)
    devices = sorted({x.device.index for x in (*tree_leaves(inputs), *model.parameters()) if x.device.type == "cuda"})
    with torch.random.fork_rng(devices), torch.no_grad(), eval_mode(model):
        try:
            yield buffers, inputs
        except Exception as error:
            raise PreconditionError(
                f"{type(model).__name__} does not run on the example input: {type(error).__name__}: {error}"
            ) from error


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Every parameter and buffer of ``module``."""
    yield from module.parameters()
    yield from module.buffers()
