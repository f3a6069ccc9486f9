"""How far the outputs of a ``.tflite`` file are from PyTorch's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nbcompile.core.errors import PreconditionError
from nbcompile.core.judging.decibels import ratio_in_decibels
from nbcompile.exporters.to_tflite.file.flatbuffer import File, read_file
from nbcompile.exporters.to_tflite.run.interpreters import Sample, run_file
from nbcompile.exporters.to_tflite.run.output_parts import OutputPart, Sources, output_parts


@dataclass(frozen=True)
class PartAgreement:
    """One part of the outputs (`output_parts`) against PyTorch's.

    Attributes:
        name: in words; empty where it is all of an output.
        output: the layer that gives the output; empty where it is not known.
        sqnr: power of PyTorch's values over that of the difference, dB; infinite where they are equal. Of whole
            numbers, all over the share that differs.
        low: the same of the worst sample by itself.
        error: standard error of ``sqnr`` over the samples, dB, by leaving out each in turn; None of a single one, or
            where it is infinite.
        limit: dB that rounding to the output's scale alone leaves; None where the output is not quantized.
        varied: dB of the values' variance over the samples over that of the difference: a constant in both counts in
            neither. 0 is what a file has that gives the mean whatever it is given; None where the values do not vary.
    """

    name: str
    output: str
    sqnr: float
    low: float
    limit: float | None = None
    varied: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class Agreement:
    """The outputs of a file in one interpreter, against PyTorch's.

    Attributes:
        kernels: the interpreter, one of `interpreters.KERNELS`.
        samples: how many were compared.
        sqnr: power of PyTorch's outputs over that of the difference, dB: of the part that has the least.
        max_lsb: largest difference, in steps of the output's scale; None where no output is quantized.
        mean_lsb: mean absolute difference, in the same unit.
        top1: share, in [0, 1], of the places where the largest value along the last axis is at the same index, or the
            same whole number is; None where no output has two values there.
        parts: what was judged by itself.
    """

    kernels: str
    samples: int
    sqnr: float
    max_lsb: float | None
    mean_lsb: float | None
    top1: float | None
    parts: tuple[PartAgreement, ...] = ()

    @property
    def least(self) -> PartAgreement:
        """The part that counts."""
        return min(self.parts, key=lambda part: part.sqnr, default=PartAgreement("", "", self.sqnr, self.sqnr))


def compared(
    content: bytes,
    samples: Sequence[Sample],
    expected: Sequence[Sample],
    *,
    kernels: str = "xnnpack",
    sources: Sequence[Sources] = (),
) -> Agreement:
    """Run a file in one interpreter and compare its outputs with PyTorch's.

    Args:
        content: the file.
        samples: inputs in the file's layout, at least one.
        expected: PyTorch's outputs for them, in the file's layout.
        kernels: one of `interpreters.KERNELS`.
        sources: where each output was computed; none: in one place.

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
    steps = [file.step(i) for i in file.outputs]
    lsbs = [np.abs(a - b) / step for (a, b), step in zip(pairs, steps, strict=True) if step]
    votes = [vote for vote in (_same_choice(a, b) for a, b in pairs) if vote is not None]
    known: Sequence[Sources | None] = sources or [None] * len(pairs)
    judged = (_judged(a, b, one, step) for (a, b), one, step in zip(pairs, known, steps, strict=True))
    parts = tuple(part for parts in judged for part in parts)
    return Agreement(
        kernels=kernels,
        samples=len(samples),
        sqnr=min(part.sqnr for part in parts),
        max_lsb=max((float(lsb.max()) for lsb in lsbs), default=None),
        mean_lsb=max((float(lsb.mean()) for lsb in lsbs), default=None),
        top1=min(votes, default=None),
        parts=parts,
    )


def _same_choice(actual: np.ndarray, expected: np.ndarray) -> float | None:
    if expected.dtype.kind != "f":
        return float(np.mean(actual == expected))
    if expected.ndim > 1 and expected.shape[-1] > 1:
        return float(np.mean(actual.argmax(-1) == expected.argmax(-1)))
    return None


def _judged(
    actual: np.ndarray, expected: np.ndarray, sources: Sources | None, step: float | None
) -> list[PartAgreement]:
    """The parts of one output, ``(N, *shape)``, whose integers stand for multiples of ``step``."""
    if expected.dtype.kind != "f":
        signal, noise = np.ones(expected.shape), (actual != expected).astype(float)
        parts = [OutputPart("", "" if sources is None else sources.output, np.ones(expected.shape[1:], bool))]
    else:
        signal = np.square(expected, dtype=np.float64)
        noise = np.square(np.subtract(actual, expected, dtype=np.float64))
        parts = output_parts(expected, sources)
    judged = []
    for part in parts:
        s, n = (x[:, part.where].sum(1) for x in (signal, noise))
        rounding = len(s) * part.where.sum() * step**2 / 12 if step else None
        limit = None if rounding is None else ratio_in_decibels(s.sum(), rounding)
        low = min(map(ratio_in_decibels, s.tolist(), n.tolist()))
        sqnr, varied = ratio_in_decibels(s.sum(), n.sum()), _varied(actual, expected, part.where)
        judged.append(PartAgreement(part.name, part.output, sqnr, low, limit, varied, standard_error(s, n)))
    return judged


def standard_error(signal: np.ndarray, noise: np.ndarray) -> float | None:
    """How far, dB, the ratio of the sums of two powers by sample may be from what other samples give.

    Source:
        The jackknife: Efron and Stein 1981, Annals of Statistics 9(3), Eq. 1.4.
    """
    count = len(signal)
    left = [ratio_in_decibels(s, n) for s, n in zip(signal.sum() - signal, noise.sum() - noise, strict=True)]
    if count < 2 or not np.isfinite(left).all():
        return None
    return float(np.sqrt((count - 1) * np.var(left)))


def _varied(actual: np.ndarray, expected: np.ndarray, where: np.ndarray) -> float | None:
    if expected.dtype.kind != "f":
        return None
    y, x = (z[:, where].astype(np.float64) for z in (expected, actual))
    signal, noise = (float(np.square(z - z.mean(0)).sum()) for z in (y, x - y))
    return ratio_in_decibels(signal, noise) if signal > 0 else None


def share_as_good(samples: int, tried: int = 1) -> float:
    """The share of all samples that are at least as good as the worst of some, with 95 % confidence.

    Whatever their distribution: were the share smaller, so many would all be that good with a probability below 5 %.

    Args:
        samples: how many were looked at, drawn as those that are spoken of.
        tried: how many files they were to choose the best of.

    Source:
        Wilks 1941, Annals of Mathematical Statistics 12(1); over several files by Bonferroni's inequality.
    """
    return float((0.05 / tried) ** (1 / samples))


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
