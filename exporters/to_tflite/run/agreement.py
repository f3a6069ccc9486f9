"""How far the outputs of a ``.tflite`` file are from PyTorch's."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log10

import numpy as np

from nbcompile.core.errors import PreconditionError
from nbcompile.exporters.to_tflite.file.flatbuffer import File, read_file
from nbcompile.exporters.to_tflite.run.interpreters import Sample, run_file


@dataclass(frozen=True)
class Agreement:
    """The outputs of a file in one interpreter, against PyTorch's; of several outputs the worst.

    Attributes:
        kernels: the interpreter, one of `interpreters.KERNELS`.
        samples: how many were compared.
        sqnr: power of PyTorch's outputs over that of the difference, dB; infinite where they are equal.
        max_lsb: largest difference, in steps of the output's scale; None where no output is quantized.
        mean_lsb: mean absolute difference, in the same unit.
        top1: share, in [0, 1], of the places where the largest value along the last axis is at the same index; None
            where no output has two values there.
    """

    kernels: str
    samples: int
    sqnr: float
    max_lsb: float | None
    mean_lsb: float | None
    top1: float | None


def compared(
    content: bytes, samples: Sequence[Sample], expected: Sequence[Sample], *, kernels: str = "xnnpack"
) -> Agreement:
    """Run a file in one interpreter and compare its outputs with PyTorch's.

    Args:
        content: the file.
        samples: inputs in the file's layout, at least one.
        expected: PyTorch's outputs for them, in the file's layout.
        kernels: one of `interpreters.KERNELS`.

    Raises:
        UsageError, ExportError: as `interpreters.run_file`.
        PreconditionError: if there is no sample, or inputs or outputs are not of the file's shapes.
    """
    file = read_file(content)
    _require_shapes(file, samples, expected)
    outputs = run_file(content, samples, kernels=kernels)
    pairs = [
        (np.stack(a), np.stack(b)) for a, b in zip(zip(*outputs, strict=True), zip(*expected, strict=True), strict=True)
    ]
    lsbs = [np.abs(a - b) / step for (a, b), step in zip(pairs, map(file.step, file.outputs), strict=True) if step]
    votes = [np.mean(a.argmax(-1) == b.argmax(-1)) for a, b in pairs if a[0].ndim and a.shape[-1] > 1]
    return Agreement(
        kernels=kernels,
        samples=len(samples),
        sqnr=min(sqnr(a, b) for a, b in pairs),
        max_lsb=max((float(lsb.max()) for lsb in lsbs), default=None),
        mean_lsb=max((float(lsb.mean()) for lsb in lsbs), default=None),
        top1=min(map(float, votes), default=None),
    )


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


def _require_shapes(file: File, samples: Sequence[Sample], expected: Sequence[Sample]) -> None:
    shapes = [file.tensors[i].shape for i in file.outputs]
    if not samples or len(samples) != len(expected):
        raise PreconditionError(f"{len(samples)} samples and {len(expected)} outputs cannot be compared")
    for sample in expected:
        if [y.shape for y in sample] != shapes:
            raise PreconditionError(
                f"the file gives outputs of shape {', '.join(map(str, shapes))}; "
                f"PyTorch's have {', '.join(str(y.shape) for y in sample) or 'none'}"
            )
