"""What values every tensor of a float ``.tflite`` file takes over a calibration set, and the range to keep of them.

=============  ======================================================================================================
estimator      what is kept
=============  ======================================================================================================
``minmax``     every value that was seen
``percentile`` all but 0.01 % of the values at either end
``mse``        what makes the error least: values outside are clipped, those inside rounded to 1/255 of the range
=============  ======================================================================================================

Outputs of the file keep every value: classes that are clipped to the same number could not be told apart.
Scores that a softmax turns to nothing (those of masked positions) do not count, how low they may be; nor how far a
value goes where only a sigmoid or a tanh reads it, which is flat there.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nbcompile.core.errors import PreconditionError, UsageError
from nbcompile.core.progress import step
from nbcompile.exporters.to_tflite.file.flatbuffer import File, read_file
from nbcompile.exporters.to_tflite.file.options import ESTIMATORS, require_choice
from nbcompile.exporters.to_tflite.file.ports import FloatModel
from nbcompile.exporters.to_tflite.once import once
from nbcompile.exporters.to_tflite.run.interpreters import Sample, tensors

TAIL = 1e-4
"""Share of the values that ``percentile`` drops at either end."""

BINS = 2048
CANDIDATES = np.linspace(0.1, 1, 91)
"""Shares of the seen range that ``mse`` tries, at either end by itself."""

ALL_ZERO = (0.0, 1.0)
"""The range of a tensor that was 0 throughout: a scale must not be 0, and 0 itself is exact in any range."""

LARGEST = float(np.finfo(np.float32).max)
"""LiteRT's kernels clip infinities to this."""

FADED = 16.0
"""So far below the largest of its row, a score has a weight of 1e-7 behind softmax, or less."""

FLAT = {"LOGISTIC": 1.0, "TANH": 0.5}
"""Times ``ln(4 * levels)``: from there on it is a quarter of a step from its limit, whose scale TFLite prescribes."""

_FACTORS = {
    **dict.fromkeys(("MUL", "FULLY_CONNECTED", "BATCH_MATMUL", "CONV_2D", "DEPTHWISE_CONV_2D"), (0, 1)),
    "TRANSPOSE_CONV": (1, 2),
}
"""Which inputs an operator multiplies with each other: where one is 0, the other does not count."""

_NARROWEST = 4096
"""How many times narrower than what was seen a range may become for that: kernels have no form for more (2**16)."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Ranges:
    """The ranges of a file's tensors over a calibration set.

    Attributes:
        kept: by the tensor's index in the float file: (lowest, highest) value that is kept; 0 is always inside.
        seen: by the tensor's index: (lowest, highest) value that was seen, and that counts.
        dead: names of the layers whose output was one and the same number throughout, though the input counts there.
        samples: how many were run.
    """

    kept: Mapping[int, Range]
    seen: Mapping[int, Range]
    dead: tuple[str, ...]
    samples: int

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, one sentence each."""
        if not self.dead:
            return ()
        return (
            f"the output of {', '.join(self.dead)} was one constant over all {self.samples} calibration samples: "
            f"its range is not known; calibrate on samples that differ",
        )


def measure_ranges(
    model: FloatModel, samples: Sequence[Sample], estimator: str = "minmax", *, levels: int = 256
) -> Ranges:
    """Run ``model`` over ``samples``, and choose the range of every float tensor that it computes.

    Args:
        model: the float file.
        samples: in the file's layout, batch 1, float32.
        estimator: one of `file.options.ESTIMATORS`.
        levels: how many values an integer has: 256 for int8, 65536 for int16.

    Raises:
        UsageError: if the estimator is not known, or there is no sample.
        PreconditionError: if a value is NaN or infinite; the first layer that gives one is named.

    Source:
        Nagel et al. 2021, arXiv:2106.08295, section 3.1 (min-max and mean-squared error).
    """
    require_choice("ranges", estimator, ESTIMATORS)
    if not samples:
        raise UsageError("the ranges of int8 and int16x8 files are measured: give calibration samples, there are none")
    file = read_file(model.content)
    seen = _seen(model, samples)
    kept = dict(seen)
    if estimator != "minmax":
        for i, histogram in _histograms(model, samples).items():
            kept[i] = histogram.without_tails() if estimator == "percentile" else histogram.least_error(levels)
    for name, share in FLAT.items():
        for i in seen.keys() & _only_read_by(file, name).keys():
            limit = max(share * math.log(4 * levels), (seen[i][1] - seen[i][0]) / _NARROWEST)
            kept[i] = max(min(kept[i][0], limit), -limit), max(min(kept[i][1], limit), -limit)
    fixed = _fixed(file, seen)
    computed = [i for op in file.ops for i in op.outputs if i in seen and i not in fixed]
    dead = dict.fromkeys(layer_of_tensor(model, file.tensors[i].name) for i in computed if seen[i][0] == seen[i][1])
    return Ranges({i: _with_zero(limits) for i, limits in kept.items()}, seen, tuple(dead), len(samples))


def layer_of_tensor(model: FloatModel, tensor: str) -> str:
    """The layer whose result a tensor is; the tensor's own name where it is no layer's."""
    return model.layers.get(tensor, tensor)


def _fixed(file: File, seen: Mapping[int, Range]) -> set[int]:
    """The tensors that no input changes: products with 0, as with an LSTM's first state, and what reads only these."""
    fixed = {tensor.index for tensor in file.tensors if tensor.data is not None}

    def is_zero(i: int) -> bool:
        data = file.tensors[i].data
        return i in fixed and (seen.get(i) == (0.0, 0.0) if data is None else not data.any())

    for op in file.ops:
        factors = [op.inputs[place] for place in _FACTORS.get(op.name, ())]
        if any(map(is_zero, factors)) or fixed.issuperset(i for i in op.inputs if i >= 0):
            fixed.update(op.outputs)
    return fixed


def _with_zero(limits: Range) -> Range:
    lowest, highest = min(limits[0], 0.0), max(limits[1], 0.0)
    return (lowest, highest) if lowest < highest else ALL_ZERO


def _floats(model: FloatModel, samples: Sequence[Sample]) -> Iterator[dict[int, np.ndarray]]:
    """The float tensors of every sample, inputs first, then in the order of execution."""
    for values in tensors(model.content, samples, kernels="builtin"):
        yield {i: x for i, x in values.items() if x.dtype == np.float32}


@once
def _seen(model: FloatModel, samples: Sequence[Sample]) -> dict[int, Range]:
    ranges: dict[int, Range] = {}
    scores = scores_of(read_file(model.content))
    with step("calibrating", len(samples)) as advance:
        for number, values in enumerate(_floats(model, samples)):
            for i, x in values.items():
                lowest, highest = float(x.min()), float(x.max())  # NaN if one of the values is
                if not max(-lowest, highest) < LARGEST:
                    raise PreconditionError(_not_finite(model, i, number, int((~(np.abs(x) < LARGEST)).sum()), x.size))
                if i in scores:
                    lowest = max(lowest, min(float(values[rows].max(-1).min()) for rows in scores[i]) - FADED)
                before = ranges.get(i, (lowest, highest))
                ranges[i] = min(before[0], lowest), max(before[1], highest)
            advance()
    return ranges


def scores_of(file: File) -> dict[int, set[int]]:
    """The tensors that only softmax reads, as they are or in another shape or order; with those that it reads."""
    return _only_read_by(file, "SOFTMAX")


def _only_read_by(file: File, name: str) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for op in reversed(file.ops):
        result = op.outputs[0]
        rows: list[set[int]] = []
        for reader in file.ops:
            if result in reader.inputs:
                moved = found.get(reader.outputs[0], set()) if reader.name in ("RESHAPE", "TRANSPOSE") else set()
                rows.append({result} if reader.name == name else moved)
        if rows and all(rows) and result not in file.outputs:
            found[result] = set().union(*rows)
    return found


def _not_finite(model: FloatModel, tensor: int, sample: int, bad: int, size: int) -> str:
    file = read_file(model.content)
    name = file.tensors[tensor].name
    what = f"input '{name}'" if tensor in file.inputs else f"the output of layer '{layer_of_tensor(model, name)}'"
    return (
        f"{what} has {bad:,} of {size:,} values that are NaN or infinite on calibration sample {sample} (counted from "
        f"0): no integers can stand for them; look at the sample, and at how images are made into inputs"
    )


@dataclass(frozen=True)
class _Histogram:
    """Values of one tensor over all samples, in equal bins between the lowest and the highest.

    Attributes:
        limits: lowest and highest value.
        counts: per bin; values that are exactly 0 are not in it.
        zeros: how many those are: they have no rounding error.
    """

    limits: Range
    counts: np.ndarray
    zeros: int

    def without_tails(self) -> Range:
        """Limits that leave out ``TAIL`` of the values at either end."""
        tail = TAIL * (self.counts.sum() + self.zeros)
        edges = np.linspace(*self.limits, BINS + 1)
        below, above = np.cumsum(self.counts), np.cumsum(self.counts[::-1])
        return float(edges[np.sum(below <= tail)]), float(edges[BINS - np.sum(above <= tail)])

    def least_error(self, levels: int) -> Range:
        """Limits with the least sum of squared errors, of clipping and of rounding (step²/12 each) together."""
        lowest, highest = _with_zero(self.limits)
        centres = np.linspace(*self.limits, BINS, endpoint=False) + (self.limits[1] - self.limits[0]) / (2 * BINS)
        bottoms, tops = np.unique(CANDIDATES * lowest)[:, None], np.unique(CANDIDATES * highest)[:, None]
        under, over = np.maximum(bottoms - centres, 0), np.maximum(centres - tops, 0)
        clipping = (under**2 @ self.counts)[:, None] + over**2 @ self.counts
        clipped = ((under > 0) @ self.counts)[:, None] + (over > 0) @ self.counts
        rounding = ((tops.T - bottoms) / (levels - 1)) ** 2 / 12
        errors = clipping + rounding * (self.counts.sum() - clipped)
        bottom, top = np.unravel_index(np.argmin(errors), errors.shape)
        return float(bottoms[bottom, 0]), float(tops[top, 0])


@once
def _histograms(model: FloatModel, samples: Sequence[Sample]) -> dict[int, _Histogram]:
    """Of all tensors but outputs and those with one value throughout."""
    outputs = read_file(model.content).outputs
    limits = {i: seen for i, seen in _seen(model, samples).items() if i not in outputs and seen[0] < seen[1]}
    counts, zeros = {i: np.zeros(BINS) for i in limits}, dict.fromkeys(limits, 0)
    with step("counting values", len(samples)) as advance:
        for values in _floats(model, samples):
            for i in limits:
                nonzero = values[i][values[i] != 0]
                counts[i] += np.histogram(nonzero, BINS, limits[i])[0]
                zeros[i] += values[i].size - nonzero.size
            advance()
    return {i: _Histogram(limits[i], counts[i], zeros[i]) for i in limits}
