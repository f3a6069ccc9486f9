"""How far two outputs are apart, and how far they may be; `nbcompile.core.judging` says when they may be further."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from nbcompile.core.errors import PreconditionError, UsageError

TOLERANCE: dict[torch.dtype, float] = {
    # A few thousand unit roundoffs (1.1e-16). Merging layers reorders sums and loses tens of them; a wrong border,
    # a lost bias or a swapped axis costs more than 1e-3.
    torch.float64: 1e-12,
    # Another runtime sums in another order, layer after layer: 1e-7 to 3e-6 is measured on networks of 20 to 120
    # layers, against the largest value of the full output. Results are compared with deployed files at this level.
    torch.float32: 1e-5,
    # About ten times the spacing of numbers at 1 (9.8e-4 and 7.8e-3), for layers that round their outputs.
    torch.float16: 1e-2,
    torch.bfloat16: 8e-2,
}
"""Largest relative error, by dtype, of an output that counts as the same."""


def tolerance(dtype: torch.dtype) -> float:
    """The largest relative error (see `relative_error`, no unit) of two outputs that count as equal.

    Args:
        dtype: of the outputs; integers and booleans must be equal.

    Raises:
        UsageError: for a dtype without a tolerance.
    """
    if dtype in TOLERANCE:
        return TOLERANCE[dtype]
    if dtype.is_floating_point or dtype.is_complex:
        known = ", ".join(str(known).removeprefix("torch.") for known in TOLERANCE)
        raise UsageError(f"outputs of dtype {dtype} cannot be compared; these can: {known} and integers")
    return 0.0


def flatten(output: Any) -> list[Tensor]:
    """The tensors of a model's output, in order: a tensor, or nested tuples, lists, mappings and dataclasses.

    None stands for an output that is not there.

    Raises:
        PreconditionError: if a leaf is no tensor.
    """
    return [leaf for _, leaf in _leaves(output, "output")]


def output_tolerance(output: Any) -> float:
    """The largest :func:`tolerance` of the tensors of a model's output.

    Raises:
        PreconditionError: if a leaf is no tensor.
    """
    return max((tolerance(x.dtype) for x in flatten(output)), default=0.0)


def is_finite(output: Any) -> bool:
    """Whether no value of a model's output is NaN or infinite.

    Raises:
        PreconditionError: if a leaf is no tensor.
    """
    return all(bool(torch.isfinite(x).all()) for x in flatten(output))


def relative_error(actual: Any, expected: Any) -> float:
    """The largest ``max|a - b| / max|b|`` over the tensors of two outputs of the same structure.

    Computed in float64. Values that are not finite must be equal (NaN equals NaN), else the error is infinite; so it
    is for a difference from all zeros. Empty tensors are equal.

    Args:
        actual: what was measured: a tensor, or nested tuples, lists, mappings and dataclasses.
        expected: what it should be, of the same structure and the same shapes; it sets the scale.

    Returns:
        The relative error, no unit; 0 if there is no tensor at all.

    Raises:
        PreconditionError: if structures or shapes differ, or a leaf is no tensor.
    """
    left, right = _leaves(actual, "output"), _leaves(expected, "output")
    if [place for place, _ in left] != [place for place, _ in right]:
        raise PreconditionError(
            f"outputs of different structure cannot be compared: {_places(left)} against {_places(right)}"
        )
    for (place, a), (_, b) in zip(left, right, strict=True):
        if a.shape != b.shape:
            raise PreconditionError(
                f"outputs of different shape cannot be compared: {place} is {tuple(a.shape)} against {tuple(b.shape)}"
            )
    return max((_tensor_error(a, b) for (_, a), (_, b) in zip(left, right, strict=True)), default=0.0)


def _tensor_error(actual: Tensor, expected: Tensor) -> float:
    a, b = (_real64(x) for x in (actual, expected))
    largest = float((a - b).abs().max()) if a.numel() else 0.0
    if largest == 0 and _is_whole(actual) and _is_whole(expected) and not torch.equal(actual.cpu(), expected.cpu()):
        largest = 1.0  # of 64 bits, float64 holds 53
    if math.isfinite(largest):  # so all values are
        scale = float(b.abs().max()) if largest else 1.0
        return largest / scale if scale else float("inf")
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return 0.0
    if not bool(torch.isfinite(a[~same]).all() and torch.isfinite(b[~same]).all()):
        return float("inf")
    finite = b[torch.isfinite(b)].abs()
    scale = float(finite.max())
    return float((a[~same] - b[~same]).abs().max()) / scale if scale else float("inf")


def _is_whole(x: Tensor) -> bool:
    return x.dtype in (torch.int64, torch.uint64)


def _real64(x: Tensor) -> Tensor:
    x = x.detach().cpu()
    return torch.view_as_real(x.to(torch.complex128)) if x.is_complex() else x.to(torch.float64)


def placed_tensors(output: Any) -> list[tuple[str, Tensor]]:
    """The tensors of a model's output as of :func:`flatten`, with their places, such as ``output[0]['boxes']``."""
    return _leaves(output, "output")


def stacked(outputs: Sequence[Any]) -> dict[tuple[str, tuple[int, ...]], Tensor]:
    """Outputs of several calls, sample by sample, in float64 on the CPU.

    Returns:
        By place and by shape without the samples: a tensor ``(N, *shape)``.
    """
    rows: dict[tuple[str, tuple[int, ...]], list[Tensor]] = {}
    for output in outputs:
        for place, x in placed_tensors(output):
            x = _real64(x if x.ndim else x[None])
            rows.setdefault((place, tuple(x.shape[1:])), []).append(x)
    return {key: torch.cat(parts) for key, parts in rows.items()}


def _leaves(output: Any, place: str) -> list[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        if output.layout is not torch.strided or output.is_quantized:
            kind = "quantized" if output.is_quantized else str(output.layout).removeprefix("torch.")
            raise PreconditionError(f"{place} of the model is a {kind} tensor; only dense ones can be compared")
        return [(place, output)]
    if output is None:
        return []
    if isinstance(output, Mapping):
        children = [(f"{place}[{key!r}]", value) for key, value in output.items()]
    elif isinstance(output, tuple | list):
        children = [(f"{place}[{i}]", value) for i, value in enumerate(output)]
    elif is_dataclass(output) and not isinstance(output, type):
        children = [(f"{place}.{field.name}", getattr(output, field.name)) for field in fields(output)]
    else:
        raise PreconditionError(
            f"{place} of the model is of type {type(output).__name__}; only tensors, and tuples, lists, dicts and "
            f"dataclasses of them, can be compared"
        )
    return [leaf for where, value in children for leaf in _leaves(value, where)]


def _places(leaves: list[tuple[str, Tensor]]) -> str:
    return ", ".join(place for place, _ in leaves) or "nothing"
