"""Random numbers: all those of an epoch are a function of (seed, epoch, process), so a resumed run restores nothing."""

import random

import numpy as np
import torch


def derived_seed(*parts: int) -> int:
    """A 32-bit seed that is a function of ``parts``, such as (seed, epoch, rank)."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def seed_everything(*parts: int) -> None:
    """Seed the generators of python, numpy and torch (all devices) with a function of ``parts``."""
    seed = derived_seed(*parts)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
