"""The parts of outputs, how far they are from what they should be, and how far they may be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from nbcompile.core.errors import PreconditionError
from nbcompile.core.judging.rounding import ROUNDINGS
from nbcompile.core.judging.value_parts import ValuePart, value_parts
from nbcompile.core.numerics import placed_tensors, relative_error, stacked, tolerance

CEILING: dict[torch.dtype, float] = {
    # Another network's outputs differ by about 1, those of one with a wrong border or bias by 1e-3 and more: what
    # rounds more than this cannot be told from them, whatever the reason.
    torch.float64: 1e-10,
    torch.float32: 1e-3,
    torch.float16: 0.1,
    torch.bfloat16: 0.3,
}
"""Largest error, relative to the whole output, by dtype, that counts as rounding in any network."""

REMARKABLE = 1e-4
"""Where more than this is allowed, a sentence says why."""


@dataclass(frozen=True)
class Allowed:
    """How far outputs may be apart.

    Attributes:
        error: the largest relative error (see `nbcompile.core.numerics.relative_error`, no unit).
        why: where that is above ``REMARKABLE``, or the network rounds more than ``CEILING``: half a sentence.
        telling: whether outputs tell two networks apart: not where the network itself rounds more than ``CEILING``.
    """

    error: float
    why: str = ""
    telling: bool = True

    def __str__(self) -> str:
        return f"{self.error:.0e}" + (f" ({self.why})" if self.why else "")


@dataclass(frozen=True, eq=False)
class ComparedPart:
    """A part of an output, and how far it is from what it should be.

    Attributes:
        key: of `nbcompile.core.numerics.stacked`.
        dtype: of the output.
        part: which values.
        whole: the size of the whole output, in its unit.
        error: the largest difference in the part, relative to its size.
        tolerance: the largest such error that counts as equal by dtype.
        alone: whether there is one output only.
    """

    key: tuple[str, tuple[int, ...]]
    dtype: torch.dtype
    part: ValuePart
    whole: float
    error: float
    tolerance: float
    alone: bool

    @property
    def name(self) -> str:
        """In words; empty where it is all that there is."""
        place = "" if self.alone else self.key[0]
        return f"{self.part.name} of {place}" if self.part.name and place else self.part.name or place

    def allowed(self, moved: Mapping[tuple[str, tuple[int, ...]], Tensor], how: str) -> Allowed:
        """How far it may be, if the network's own outputs move so far: by a ceiling at most."""
        ceiling = (
            CEILING.get(self.dtype.to_real(), 0.0) if self.dtype.is_floating_point or self.dtype.is_complex else 0.0
        )
        if not ceiling or not self.part.size:
            return Allowed(self.tolerance)
        there = moved.get(self.key)
        own = self.part.most(there) if there is not None else 0.0
        rounding = ROUNDINGS * own
        chance = ROUNDINGS * torch.finfo(self.dtype).eps * self.part.largest  # a few values may round by nothing
        raised = max(self.tolerance, max(chance, min(rounding, ceiling * self.whole)) / self.part.size)
        why = how.format(own / self.part.size)
        if rounding > ceiling * self.whole:
            return Allowed(raised, f"{why}: more is not told from a fault", telling=False)
        return Allowed(raised, why if raised > max(self.tolerance, REMARKABLE) else "")


def compared_parts(outputs: Sequence[Any], wanted: Sequence[Any], least: float) -> list[ComparedPart]:
    """The parts of what several calls gave, with the differences there.

    Args:
        outputs: of each call.
        wanted: what they should be.
        least: relative error that is allowed in any case, of floating-point outputs.

    Raises:
        PreconditionError: if structures, shapes or dtypes differ, or an output holds what is no tensor.
    """
    dtypes: dict[str, torch.dtype] = {}
    worst: dict[str, float] = {}
    for given, own in zip(outputs, wanted, strict=True):
        for (place, x), (_, y) in zip(placed_tensors(given), placed_tensors(own), strict=True):
            if x.dtype != y.dtype:
                a, b = (str(z.dtype).removeprefix("torch.") for z in (x, y))
                raise PreconditionError(f"outputs of different dtype cannot be compared: {place} is {a} against {b}")
            dtypes[place], worst[place] = y.dtype, max(worst.get(place, 0.0), relative_error(x, y))
    made, parts = stacked(outputs), []
    for key, y in stacked(wanted).items():
        dtype, apart = dtypes[key[0]], differences(made[key], y)
        numbers = dtype.is_floating_point or dtype.is_complex
        limit = max(tolerance(dtype), least) if numbers else 0.0
        whole, *others = value_parts(y)
        if not numbers:  # float64 does not tell all of them apart
            parts.append(ComparedPart(key, dtype, whole, whole.size, worst[key[0]], limit, len(dtypes) == 1))
            continue
        for part in (whole, *others):
            most = part.most(apart)
            error = most / part.size if part.size else inf if most else 0.0
            parts.append(ComparedPart(key, dtype, part, whole.size, error, limit, len(dtypes) == 1))
    return parts


def differences(x: Tensor, y: Tensor) -> Tensor:
    """Absolute differences; none where both are not finite, which is another question."""
    return (x - y).abs().nan_to_num(nan=0.0, posinf=0.0)
