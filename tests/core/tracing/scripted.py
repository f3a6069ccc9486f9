"""TorchScript, which torch warns of."""

import warnings

import torch
from torch import nn


def scripted(module: nn.Module) -> nn.Module:
    """``module`` as TorchScript."""
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        return torch.jit.script(module)  # type: ignore[no-any-return]
