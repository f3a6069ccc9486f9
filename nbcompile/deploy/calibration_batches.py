"""Batches of inputs that are ready, taken apart into samples, each checked against the network's example input."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nbcompile.core.errors import PreconditionError, UsageError
from nbcompile.core.example import Inputs


def samples_in(batches: Any, inputs: Inputs, notes: list[str]) -> Iterator[Inputs]:
    """The samples in an iterable of batches, at batch size 1.

    Args:
        batches: each a tensor, or a tuple that starts with the inputs.
        inputs: example, batch first.
        notes: what the user should know is added here.

    Raises:
        UsageError: if ``batches`` is no iterable, or a batch is not what the network takes.
        PreconditionError: if a sample has values that are NaN or infinite.
    """
    if not isinstance(batches, Iterable):
        raise UsageError(
            f"a calibration set cannot be of type {type(batches).__name__}: give a folder of images, an .npz, a tensor "
            f"(N, C, H, W), or an iterable of batches"
        )
    number = 0
    for batch in batches:
        items = _items(batch, inputs, notes)
        for i in range(len(items[0])):
            sample = tuple(t[i : i + 1].detach().cpu() for t in items)
            for x in sample:
                _require_finite(x, number)
            yield tuple(x.to(example.dtype) for x, example in zip(sample, inputs, strict=True))
            number += 1


def _items(batch: Any, inputs: Inputs, notes: list[str]) -> tuple[Tensor, ...]:
    """The inputs in a batch.

    Raises:
        UsageError: if they are not what the network takes.
    """
    items = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    if len(items) > len(inputs):
        taken = "first item was" if len(inputs) == 1 else f"first {len(inputs)} items were"
        note = f"calibration batches have {len(items)} items: the {taken} taken, the rest (labels) left"
        if note not in notes:
            notes.append(note)
    tensors = tuple(_tensor(x) if isinstance(x, np.ndarray) else x for x in items[: len(inputs)])
    if len(tensors) < len(inputs) or not all(isinstance(x, Tensor) for x in tensors):
        kinds = ", ".join(type(x).__name__ for x in tensors) or "nothing"
        raise UsageError(
            f"a calibration batch is ({kinds}), the network takes {len(inputs)} tensors: give batches that are one "
            f"tensor, or a tuple that starts with the inputs"
        )
    for x, example in zip(tensors, inputs, strict=True):
        if reason := _misfit(x, example):
            raise UsageError(
                f"calibration data {tuple(x.shape)} does not fit the network's input {tuple(example.shape)}: {reason}"
            )
    if len({len(x) for x in tensors}) > 1:
        raise UsageError(f"the inputs of a calibration batch have {', '.join(str(len(x)) for x in tensors)} samples")
    return tensors


def _tensor(x: np.ndarray) -> Tensor:
    """An array as a tensor; copied where PyTorch cannot share its memory: flipped, read-only or of other byte order.

    Raises:
        UsageError: if it holds no numbers.
    """
    try:
        return torch.from_numpy(np.require(x, x.dtype.newbyteorder("="), ["C", "W"]))
    except TypeError as error:
        raise UsageError(f"calibration data holds {x.dtype}, not numbers: give arrays of numbers") from error


def _misfit(x: Tensor, example: Tensor) -> str | None:
    """Why ``x`` cannot be an input like ``example``, and what to do; None if it can."""
    wanted = tuple(example.shape[1:])
    if tuple(x.shape) == wanted:
        return "it has no batch dimension; use x.unsqueeze(0)"
    if len(wanted) == 3 and tuple(x.shape[1:]) == (*wanted[1:], wanted[0]) != wanted:
        return "it is channels-last; use x.permute(0, 3, 1, 2)"
    if len(wanted) == 3 and x.ndim == 4 and x.shape[1] != wanted[0]:
        return f"it has {x.shape[1]} channels instead of {wanted[0]}"
    if tuple(x.shape[1:]) != wanted:
        return "it is of another size; resize it as for training"
    if x.dtype.is_floating_point != example.dtype.is_floating_point:
        kinds = (str(t.dtype).removeprefix("torch.") for t in (x, example))
        return "it is {} instead of {}; make it into inputs as for training".format(*kinds)
    return None


def _require_finite(x: Tensor, number: int) -> None:
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise PreconditionError(
            f"calibration sample {number} (counted from 0) has {bad:,} of {x.numel():,} values that are NaN or infinite"
        )
