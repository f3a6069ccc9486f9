"""What a ``.tflite`` file holds: tensors, scales and operators."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Quantization:
    """The line between integers and numbers: ``x = scale * (q - zero_point)``.

    Attributes:
        scale: float32, one value, or one per channel.
        zero_point: int64, as many.
        axis: of the channels, where there is more than one.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int

    def integers(self, x: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
        """Numbers ``x`` as integers: rounded half away from zero, clipped to what ``dtype`` holds."""
        steps = x.astype(np.float64) / self._along(self.scale, x.ndim)
        rounded = np.copysign(np.floor(np.abs(steps) + 0.5), steps) + self._along(self.zero_point, x.ndim)
        clipped: np.ndarray = np.clip(rounded, np.iinfo(dtype).min, np.iinfo(dtype).max)
        return clipped.astype(dtype)

    def numbers(self, q: np.ndarray) -> np.ndarray:
        """What integers ``q`` stand for, float64."""
        x: np.ndarray = (q.astype(np.float64) - self._along(self.zero_point, q.ndim)) * self._along(self.scale, q.ndim)
        return x

    def _along(self, values: np.ndarray, ndim: int) -> np.ndarray:
        """``values`` in a shape that broadcasts over a tensor of ``ndim`` dimensions, which may be none."""
        axis = self.axis if len(values) > 1 else None
        return values.reshape([-1 if i == axis else 1 for i in range(ndim)])


@dataclass(frozen=True, eq=False)
class FileTensor:
    """One tensor of a file.

    Attributes:
        index: in the file.
        name: in the file.
        shape: in the file.
        dtype: of its values as they are stored.
        quantization: None for numbers that are stored as they are.
        data: its values if it is a constant, in ``shape``; else None.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    quantization: Quantization | None
    data: np.ndarray | None

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def quantized(self, x: np.ndarray) -> np.ndarray:
        """Numbers ``x`` as this tensor stores them."""
        return x.astype(self.dtype) if self.quantization is None else self.quantization.integers(x, self.dtype)

    def dequantized(self, q: np.ndarray) -> np.ndarray:
        """The numbers that stored values ``q`` stand for: float64; where nothing is quantized, ``q`` itself."""
        return q if self.quantization is None else self.quantization.numbers(q)


@dataclass(frozen=True)
class FileOp:
    """One operator of a file.

    Attributes:
        index: its place in the order of execution.
        name: as in the schema, such as ``CONV_2D``.
        version: of the operator.
        inputs: indices of tensors; -1 stands for an input that is not there.
        outputs: indices of tensors.
        options: the schema's own object (``Conv2DOptionsT``, say); None if it has none.
    """

    index: int
    name: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any


@dataclass(frozen=True)
class File:
    """What is in a ``.tflite`` file of one graph.

    Attributes:
        size: bytes of the file, which is what it takes in flash.
        tensors: all of them, by index.
        ops: in the order of execution.
        inputs: indices of tensors.
        outputs: indices of tensors.
        plan: bytes from the start of the arena at which TFLite Micro is to put each tensor, -1 where it chooses; empty
            where the file has no plan.
    """

    size: int
    tensors: tuple[FileTensor, ...]
    ops: tuple[FileOp, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    plan: tuple[int, ...] = ()

    def operands(self, op: FileOp) -> Iterator[FileTensor]:
        """The inputs of ``op`` that are there."""
        return (self.tensors[i] for i in op.inputs if i >= 0)

    def step(self, index: int) -> float | None:
        """What one integer step of a tensor stands for, before a ``DEQUANTIZE``, too; None if it is not quantized."""
        tensor, writer = self.tensors[index], self.writers.get(index)
        if writer is not None and writer.name == "DEQUANTIZE":
            tensor = self.tensors[writer.inputs[0]]
        return None if tensor.quantization is None else float(tensor.quantization.scale.max())

    @cached_property
    def writers(self) -> dict[int, FileOp]:
        """The operator that computes a tensor, by the tensor's index; inputs and constants have none."""
        return {i: op for op in self.ops for i in op.outputs}
