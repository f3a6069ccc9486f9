"""Ranges that int8-aware training found belong to the weights that it found them with, and to no others."""

import hashlib
import logging
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nbcompile.core.example import Origin, origin_of, remember

log = logging.getLogger("nbcompile")

_WEIGHTS = "weights"


def remember_ranges(model: nn.Module, origin: Origin | None, ranges: dict[str, Any]) -> None:
    """Let ``model`` remember ``origin``, and ``ranges`` as those of its weights."""
    if origin is not None:
        remember(model, replace(origin, int8={**ranges, _WEIGHTS: _digest(model)}))


def has_own_ranges(model: nn.Module) -> bool:
    """Whether ``model`` remembers ranges, and has the weights that they were found with."""
    origin = origin_of(model)
    return origin is not None and bool(origin.int8) and origin.int8.get(_WEIGHTS) == _digest(model)


def forget_foreign_ranges(model: nn.Module, who: str) -> Origin | None:
    """What ``model`` remembers, without ranges if they were found with other weights; a warning says so.

    Args:
        model: left as it is.
        who: the verb that asks.
    """
    origin = origin_of(model)
    if origin is None or not origin.int8 or has_own_ranges(model):
        return origin
    log.warning(
        "%s: the weights were changed since the training with --int8: the ranges that it recorded are left out", who
    )
    return replace(origin, int8={})


def _digest(model: nn.Module) -> str:
    found = hashlib.sha256()
    for _, x in sorted(model.state_dict().items()):
        if isinstance(x, Tensor):
            found.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
