"""Signal over noise, in decibels."""

from math import inf, log10

import numpy as np


def sqnr(actual: np.ndarray, expected: np.ndarray) -> float:
    """Signal over noise: the power of ``expected`` over that of the difference, dB.

    Infinite where both are equal; minus infinity where ``expected`` alone is all zeros, or a value is not finite.
    """
    return ratio_in_decibels(power(expected), power(np.subtract(actual, expected, dtype=np.float64)))


def power(x: np.ndarray) -> float:
    """The sum of squares, in float64."""
    return float(np.square(x, dtype=np.float64).sum())


def ratio_in_decibels(signal: float, noise: float) -> float:
    """The ratio of two powers, dB; see `sqnr`."""
    if noise == 0.0:
        return inf
    return 10 * log10(signal / noise) if signal > 0.0 and noise < inf else -inf
