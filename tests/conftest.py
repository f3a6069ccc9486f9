"""What every test shares: one thread, one seed, random norms."""

from collections.abc import Callable

import hypothesis
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

torch.set_num_threads(1)  # the suite runs one worker a core
hypothesis.settings.register_profile("nbcompile", deadline=None, derandomize=True, max_examples=100)
hypothesis.settings.load_profile("nbcompile")

Scramble = Callable[[nn.Module], nn.Module]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def scramble() -> Scramble:
    """Random statistics and affine parameters for every batch norm: a fresh one is nearly the identity."""

    def scramble_(model: nn.Module) -> nn.Module:
        for norm in model.modules():
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
                nn.init.normal_(norm.running_mean)
                nn.init.uniform_(norm.running_var, 0.5, 2.0)
                if norm.affine:
                    nn.init.uniform_(norm.weight, 0.5, 2.0)
                    nn.init.normal_(norm.bias)
        return model

    return scramble_
