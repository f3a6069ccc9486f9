"""Where in a quantized file the error arises: layer by layer, against the float file that it was made from.

A layer is judged by the error that it adds itself: its result in the quantized file, against what the float layer
gives for the inputs that it has there, with weights rounded as well as their integers allow. What the inputs bring
along is set aside exactly, and what is left should be the rounding of the result: spread evenly over one step, which
is 0.29 steps root mean square. The step is the one that the layer's own range on the samples needs, so that a range
that is much too wide shows as well as one that clips. Where TFLite prescribes the scale, or neighbours share it, it is
the file's. Results of 16 bits are not judged: beside their steps, how 8-bit weights are rounded is no small matter.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt

import numpy as np

from nbcompile.core.judging.decibels import power, ratio_in_decibels
from nbcompile.core.progress import step
from nbcompile.exporters.to_tflite.file.flatbuffer import File
from nbcompile.exporters.to_tflite.file.pairs import SameOperator, needed_step, prescribed, rounded, same_operators
from nbcompile.exporters.to_tflite.file.ports import FloatModel
from nbcompile.exporters.to_tflite.run.interpreters import Sample, tensors
from nbcompile.exporters.to_tflite.run.one_operator import OperatorByOperator

BAND = 1.0
"""Steps, root mean square: the largest error of its own that a layer is expected to add; even rounding adds 0.29.

Between the two lie ranges up to three times as wide as the samples need (taken on other images, or widened by an
estimator) and kernels that round twice.
"""


@dataclass(frozen=True)
class LayerError:
    """The result of one operator in a quantized file, against the float file's.

    Attributes:
        layer: whose result it is; the tensor's name where no layer is known.
        op: the operator's name.
        low: smallest number that the result can hold; on the samples, where it is not quantized.
        high: largest such number.
        sqnr: dB, with all that the inputs bring along.
        weight_bytes: of its constants in the file.
        step: what one integer step stands for; None, as all that follows, where the result is not quantized.
        zero_point: the integer that stands for 0.0.
        expected: dB, what ``sqnr`` would be if the operator itself added as much as ``BAND`` allows; None, as ``own``,
            where the result has more than 8 bits.
        own: steps, root mean square: the error that the operator itself adds.
    """

    layer: str
    op: str
    low: float
    high: float
    sqnr: float
    weight_bytes: int
    step: float | None = None
    zero_point: int | None = None
    expected: float | None = None
    own: float | None = None

    @property
    def inside(self) -> bool:
        """Whether its own error is within ``BAND``; a result that is not judged always is."""
        return self.own is None or self.own <= BAND


def by_layer(
    model: FloatModel, content: bytes, samples: Sequence[Sample], *, kernels: str = "builtin"
) -> tuple[LayerError, ...]:
    """The error of every layer of a quantized file, in the order of execution.

    Args:
        model: the float file, with the names of its layers.
        content: the quantized file that was made from it.
        samples: inputs in the file's layout: numbers.
        kernels: that run the quantized file, one of `interpreters.KERNELS`.

    Returns:
        A row per result of an operator that both files have; operators that only convert have none.

    Raises:
        ExportError: if an interpreter refuses a file; with what it said.
        PreconditionError: if a sample does not fit the inputs.
    """
    parts, quantized = OperatorByOperator(model.content), OperatorByOperator(content).file
    watches = [_Watch(parts, quantized, pair) for pair in same_operators(parts.file, quantized)]
    exact = tensors(model.content, samples, kernels="builtin")
    quantized_runs = tensors(content, samples, kernels=kernels)
    with step("finding the error of every layer", len(samples)) as advance:
        for floats, integers in zip(exact, quantized_runs, strict=True):
            for watch in watches:
                watch.add(floats, integers)
            advance()
    return tuple(watch.row(model) for watch in watches)


class _Watch:
    """Adds up the errors of one operator over the samples."""

    def __init__(self, parts: OperatorByOperator, file: File, pair: SameOperator) -> None:
        self._pair, self._exact, self._file = pair, parts.file, file
        constants = {i: rounded(parts.file.tensors[i], file.tensors[j]) for i, j in pair.operands}
        self._part = parts.start(pair.exact, "builtin", {i: x for i, x in constants.items() if x is not None})
        self._low, self._high, self._values = inf, -inf, 0
        self._signal = self._noise = self._inherited = self._own = 0.0

    def add(self, floats: Mapping[int, np.ndarray], integers: Mapping[int, np.ndarray]) -> None:
        """One sample: all tensors of the float file, and of the quantized one as it stores them."""
        exact = _joined(floats[i] for i in self._pair.exact.outputs)
        actual = _joined(self._file.tensors[i].dequantized(integers[i]) for i in self._pair.quantized.outputs)
        given = {
            i: self._file.tensors[j].dequantized(integers[j]).astype(self._exact.tensors[i].dtype)
            for i, j in self._pair.operands
            if self._exact.tensors[i].data is None
        }
        ideal = _joined(self._part.run(given))
        self._low, self._high = min(self._low, float(exact.min())), max(self._high, float(exact.max()))
        self._values += exact.size
        self._signal += power(exact)
        self._noise += power(actual - exact)
        self._inherited += power(ideal - exact)
        self._own += power(actual - ideal)

    def row(self, model: FloatModel) -> LayerError:
        """What was added up."""
        name = self._exact.tensors[self._pair.exact.outputs[0]].name
        tensor = self._file.tensors[self._pair.quantized.outputs[0]]
        row = LayerError(
            layer=model.layers.get(name, name),
            op=self._pair.quantized.name,
            low=self._low,
            high=self._high,
            sqnr=ratio_in_decibels(self._signal, self._noise),
            weight_bytes=sum(t.nbytes for t in self._file.operands(self._pair.quantized) if t.data is not None),
        )
        if tensor.quantization is None:
            return row
        scale, zero_point = float(tensor.quantization.scale[0]), int(tensor.quantization.zero_point[0])
        limits = np.iinfo(tensor.dtype)
        row = replace(
            row,
            low=scale * (limits.min - zero_point),
            high=scale * (limits.max - zero_point),
            step=scale,
            zero_point=zero_point,
        )
        if limits.bits > 8:
            return row
        needed = 0.0 if prescribed(self._file, self._pair.quantized) else needed_step(self._low, self._high, tensor)
        allowed = BAND * (needed or scale)
        return replace(
            row,
            expected=ratio_in_decibels(self._signal, self._inherited + self._values * allowed**2),
            own=sqrt(self._own / self._values) / (needed or scale),
        )


def _joined(values: Iterable[np.ndarray]) -> np.ndarray:
    """All results of an operator in a row, in float64."""
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in values])
