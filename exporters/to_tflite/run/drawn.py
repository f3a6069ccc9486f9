"""Random inputs, as a file stores them.

Integers of a scale stand for numbers: all that there are. Those without one are rows of tables as a rule, and
interpreters stop at a row that is not there: they are those of samples that the network was run on; for want of such
samples 0 and 1, which every table of two rows has.
"""

from collections.abc import Sequence

import numpy as np

from nbcompile.exporters.to_tflite.file.flatbuffer import File, FileTensor
from nbcompile.exporters.to_tflite.run.interpreters import Sample


def drawn(file: File, count: int, known: Sequence[Sample] = (), *, seed: int = 0) -> list[Sample]:
    """Inputs of ``file``.

    Args:
        file: that is to be run.
        count: of the samples.
        known: samples in the file's shapes; whole numbers are taken from them.
        seed: of the generator.
    """
    rng = np.random.default_rng(seed)
    ports = [file.tensors[i] for i in file.inputs]

    def one(port: FileTensor, sample: int, place: int) -> np.ndarray:
        if known and is_whole(port):
            return known[sample % len(known)][place].astype(port.dtype)
        return _random(port, rng)

    return [tuple(one(port, n, i) for i, port in enumerate(ports)) for n in range(count)]


def is_whole(tensor: FileTensor) -> bool:
    """Whether it holds whole numbers, or booleans, that stand for themselves."""
    return tensor.quantization is None and tensor.dtype.kind != "f"


def _random(tensor: FileTensor, rng: np.random.Generator) -> np.ndarray:
    if tensor.dtype.kind == "f":
        return rng.standard_normal(tensor.shape).astype(tensor.dtype)
    low, high = (0, 1) if is_whole(tensor) else (np.iinfo(tensor.dtype).min, np.iinfo(tensor.dtype).max)
    numbers: np.ndarray = rng.integers(low, high, tensor.shape, endpoint=True).astype(tensor.dtype)
    return numbers
