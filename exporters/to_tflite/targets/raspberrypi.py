"""The script that times a network's files on a Raspberry Pi, and says there which of them to ship.

int8 is not always faster than float32 on a Pi: it depends on the network, the board and the threads. So both files are
written, and the script, which is `raspberrypi_benchmark` with inputs and the expected outputs filled in, measures them
where they will run.
"""

import base64
import hashlib
import inspect
import io
from collections.abc import Mapping, Sequence

import numpy as np

from nbcompile.exporters.to_tflite.file.flatbuffer import File, read_file
from nbcompile.exporters.to_tflite.run.drawn import drawn, is_whole
from nbcompile.exporters.to_tflite.run.interpreters import Sample
from nbcompile.exporters.to_tflite.targets import raspberrypi_benchmark

MARK = "# nbcompile fills in what is between these two lines.\n"

LEAST_DB = {"int8": 30.0, "float32": 60.0}
"""Between the outputs of this computer and of another one, whose kernels round otherwise: int8 files by some steps of
1/128 of the output's range, float32 files in their last digits."""

_FLOAT_RANGE = (-2.0, 2.0)
"""Of inputs where no file says what it was calibrated on."""


def benchmark_script(files: Mapping[str, bytes], samples: Sequence[Sample] = ()) -> str:
    """A Python script that stands for itself: to be copied next to the files.

    Args:
        files: their names and contents, the smallest first: the first is advised where two are nearly as fast. All
            have inputs of the same shapes.
        samples: inputs in the files' shapes: what is whole numbers is that of the first.

    Raises:
        CheckpointError: if a file cannot be read.
    """
    read_files = [read_file(content) for content in files.values()]
    ranges = _ranges(read_files)
    (numbers,) = drawn(read_files[0], 1, samples)
    inputs = [x if between is None else between for x, between in zip(numbers, ranges, strict=True)]
    packed = {f"input_{i}": x for i, x in enumerate(inputs) if isinstance(x, np.ndarray)}
    for i, content in enumerate(files.values()):
        packed |= {f"{i}_{j}": y for j, y in enumerate(raspberrypi_benchmark.answers(content, inputs))}
    stored = io.BytesIO()
    np.savez_compressed(stored, allow_pickle=False, **packed)
    known = {
        name: (hashlib.sha256(content).hexdigest(), _least_db(file))
        for (name, content), file in zip(files.items(), read_files, strict=True)
    }
    before, _, after = inspect.getsource(raspberrypi_benchmark).split(MARK)
    filled = (
        f'FILES = {known!r}\nRANGES = {ranges!r}\nPACKED = """\n{base64.encodebytes(stored.getvalue()).decode()}"""\n'
    )
    return before + MARK + filled + MARK + after


def _ranges(files: list[File]) -> list[tuple[float, float] | None]:
    """Of each input, what the first file that is quantized there can tell apart; None of whole numbers."""
    ranges: list[tuple[float, float] | None] = []
    for i, index in enumerate(files[0].inputs):
        quantized = (q for file in files if (q := _input_quantization(file, i)) is not None)
        ranges.append(None if is_whole(files[0].tensors[index]) else next(quantized, _FLOAT_RANGE))
    return ranges


def _input_quantization(file: File, i: int) -> tuple[float, float] | None:
    index = file.inputs[i]
    # A file with float inputs quantizes them first.
    first = (op.outputs[0] for op in file.ops if op.name == "QUANTIZE" and op.inputs[0] == index)
    tensor = file.tensors[next(first, index)]
    if tensor.quantization is None:
        return None
    limits = np.iinfo(tensor.dtype)
    low, high = tensor.dequantized(np.array([limits.min, limits.max]))
    return float(low), float(high)


def _least_db(file: File) -> float:
    return LEAST_DB["int8" if any(tensor.quantization for tensor in file.tensors) else "float32"]
