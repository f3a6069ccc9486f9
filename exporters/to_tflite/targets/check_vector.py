"""A check vector: inputs, and what TFLite Micro makes of them on this computer, for a device to compare with.

An input is a sample that the network was checked on, kept in flash: as bytes of an image where it is known how images
become inputs, else as the file stores it. Of one that takes more than ``MOST_BYTES`` every n-th row and column is kept
and repeated: that is still an image, which noise is not, and of noise a trained classifier is often sure. Outputs that
are sure, or all the same, hide faults: of several samples the one is taken whose outputs have the most different
values, and of those the one that is the least sure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nbcompile.exporters.to_tflite.file.flatbuffer import File, FileTensor, read_file
from nbcompile.exporters.to_tflite.run.drawn import drawn
from nbcompile.exporters.to_tflite.run.interpreters import Sample, fitted, run_file

MOST_BYTES = 32 * 1024
"""Of an input, or an output, that are kept in flash."""


@dataclass(frozen=True, eq=False)
class CheckInput:
    """One input.

    Attributes:
        value: as the file stores it.
        kept: what the device keeps of it: bytes of an image, or values as the file stores them.
        times: how often each row and column of ``kept`` comes in ``value``; where it is no map, each value.
    """

    value: np.ndarray
    kept: np.ndarray
    times: int = 1


@dataclass(frozen=True, eq=False)
class CheckVector:
    """What a device is given, and what it must give.

    Attributes:
        inputs: in the file's order.
        outputs: as the file stores them.
        of_byte: what each byte of an image becomes, as input 0 stores it, ``(rows, 256)``: one row for each channel, or
            one for all; None where that is not known.
        steps: by which integers may differ: 0, or 1 in a file that computes in float32 somewhere.
    """

    inputs: tuple[CheckInput, ...]
    outputs: Sample
    of_byte: np.ndarray | None = None
    steps: int = 0

    @property
    def byte_rows(self) -> int:
        """Rows of ``of_byte``; 0 where there is none."""
        return 0 if self.of_byte is None else len(self.of_byte)


def check_vector(content: bytes, samples: Sequence[Sample] = (), pixels: np.ndarray | None = None) -> CheckVector:
    """The check vector of a file.

    Args:
        content: the file.
        samples: inputs in the file's shapes; none: random numbers.
        pixels: what each byte of an image becomes for the network, ``(channels, 256)`` numbers.

    Raises:
        ExportError: if an interpreter refuses the file.
    """
    file = read_file(content)
    of_byte = None if pixels is None else table(file.tensors[file.inputs[0]], pixels)
    candidates = [_inputs(file, sample, pixels, of_byte) for sample in samples or drawn(file, 1)]
    given = [tuple(one.value for one in candidate) for candidate in candidates]
    best = most_telling(run_file(content, given, raw=True))
    (outputs,) = run_file(content, [given[best]], kernels="micro", raw=True)
    in_float = any(file.tensors[op.outputs[0]].dtype.kind == "f" for op in file.ops if op.name != "DEQUANTIZE")
    return CheckVector(candidates[best], outputs, of_byte, int(in_float))


def table(tensor: FileTensor, pixels: np.ndarray) -> np.ndarray:
    """What each byte of an image becomes, ``(rows, 256)``, as ``tensor`` stores it: with one row if all are the same.

    A multiplication and a shift would be smaller, but not exact: where a value lies in the middle between two steps,
    the last digit of the float32 numbers decides.
    """
    rows = tensor.quantized(pixels)
    return rows[:1] if (rows == rows[0]).all() else rows


def most_telling(outputs: Sequence[Sample]) -> int:
    """The number of the sample whose outputs would show most faults."""
    ends = [(min(y.min() for y in ys), max(y.max() for y in ys)) for ys in zip(*outputs, strict=True)]

    def told(sample: Sample) -> tuple[int, float]:
        numbers = [y.astype(np.float64) for y in sample]
        # Of a softmax that is sure, every value is at an end.
        inside = [float(np.minimum(y - low, high - y).mean()) for y, (low, high) in zip(numbers, ends, strict=True)]
        return sum(len(np.unique(y)) for y in sample), sum(inside)

    return max(range(len(outputs)), key=lambda i: told(outputs[i]))


def _inputs(
    file: File, sample: Sample, pixels: np.ndarray | None, of_byte: np.ndarray | None
) -> tuple[CheckInput, ...]:
    if pixels is None or of_byte is None:
        return tuple(CheckInput(repeated(*kept, x.shape), *kept) for x in fitted(file, sample) for kept in [_kept(x)])
    # The nearest bytes: of an image that was resized, values lie between two.
    middles = (pixels[:, 1:] + pixels[:, :-1]) / 2
    bytes_of = [np.searchsorted(row, sample[0][..., c]) for c, row in enumerate(middles)]
    kept, times = _kept(np.stack(bytes_of, -1).astype(np.uint8))
    image = repeated(kept, times, sample[0].shape)
    return (CheckInput(of_byte[np.arange(image.shape[-1]) % len(of_byte), image], kept, times),)


def _kept(x: np.ndarray) -> tuple[np.ndarray, int]:
    """What fits of ``x``, and how often each of its rows and columns, or values, is to be repeated."""
    times, kept = 1, x if x.ndim == 4 else x.ravel()
    while kept.nbytes > MOST_BYTES and times < x.size:
        times += 1
        kept = x[:, ::times, ::times] if x.ndim == 4 else x.ravel()[::times]
    return kept, times


def repeated(kept: np.ndarray, times: int, shape: tuple[int, ...]) -> np.ndarray:
    """An input of ``shape`` from what is kept of it."""
    if len(shape) == 4:
        return np.ascontiguousarray(kept.repeat(times, 1).repeat(times, 2)[:, : shape[1], : shape[2]])
    return kept.ravel().repeat(times)[: math.prod(shape)].reshape(shape)
