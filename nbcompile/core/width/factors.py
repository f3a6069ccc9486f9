"""Factors of widths: what may be drawn from. Imports nothing heavy, for ``--help`` and configs."""

from collections.abc import Sequence

from nbcompile.core.errors import UsageError

MOST = 64.0
"""The largest factor."""


def check_factors(name: str, factors: Sequence[float]) -> tuple[float, ...]:
    """``factors`` as numbers.

    Raises:
        UsageError: if they are no factors to draw from; ``name`` is said.
    """
    values = tuple(float(x) for x in factors)
    if any(not 1 <= x <= MOST for x in values):
        raise UsageError(f"{name} must be numbers from 1 to {MOST:g}, not {', '.join(f'{x:g}' for x in values)}")
    if 1.0 not in values:
        raise UsageError(f"1 must be among {name}: the original is one of the widths that are drawn")
    return values
