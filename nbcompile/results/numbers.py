"""How numbers are written, in a terminal, on a page and as JSON; what is not known, or not a number, is a dash."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

DASH = "–"
_GAP = "\u00a0"  # between a number and its unit: no line break


def known(value: float | None) -> TypeGuard[float]:
    """Whether ``value`` is a number."""
    return value is not None and not math.isnan(value)


def count(value: float | None) -> str:
    """A whole number with thousands separators: ``23,499,152``."""
    return f"{value:,.0f}" if known(value) else DASH


def percent(value: float | None) -> str:
    """A fraction in per cent: ``97.22 %``."""
    return f"{100 * value:.2f}{_GAP}%" if known(value) else DASH


def ratio(value: float | None) -> str:
    """A ratio: ``2.30 ×``."""
    return f"{value:.2f}{_GAP}×" if known(value) else DASH


def bytes_in_unit(value: float | None) -> str:
    """A number of bytes, in the unit that suits it: ``2.93 MB``."""
    if not known(value):
        return DASH
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.2f}{_GAP}{unit}"
    return f"{value:.0f}{_GAP}B"


def exact(value: float | None) -> str:
    """A number of bytes, to the last: ``311,040 B``."""
    return f"{value:,.0f}{_GAP}B" if known(value) else DASH


def decibels(value: float | None) -> str:
    """A ratio of powers on the logarithmic scale: ``38.5 dB``; infinite where there is no noise at all."""
    if not known(value):
        return DASH
    return f"{small(value) if math.isinf(value) else f'{value:.1f}'}{_GAP}dB"


def small(value: float | str | None) -> str:
    """A measured number, in powers of ten where it is tiny or huge: ``3.1e-07``; a text as it is."""
    if isinstance(value, str):
        return value
    if not known(value):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e15:
        return count(value)
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:.4g}" if abs(value) < 1e3 else f"{value:,.1f}"
    return f"{value:.1e}"


def json_ready(value: Any) -> Any:
    """``value`` with lists for tuples, and None for NaN and infinities, as :func:`json.dumps` takes it."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
