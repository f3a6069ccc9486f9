"""Two ways to compute the same outputs, one of them a ``.tflite`` file: how far they are apart, and what may be.

Where both store integers of the same scales, the integers count; where not, the signal over noise of the numbers.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nbcompile.core.errors import ExportError
from nbcompile.exporters.to_tflite.file.flatbuffer import File, read_file
from nbcompile.exporters.to_tflite.file.inspect import tflite_content, tflite_scheme
from nbcompile.exporters.to_tflite.file.options import INTERPRETERS, LEAST_SQNR
from nbcompile.exporters.to_tflite.run.agreement import Agreement
from nbcompile.exporters.to_tflite.run.drawn import drawn
from nbcompile.exporters.to_tflite.run.interpreters import Sample, run_file
from nbcompile.exporters.to_tflite.run.survival import require_survival
from nbcompile.exporters.to_tflite.targets.micro_operators import check_ops

PortShapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class FileOnDisk:
    """A file that was read.

    Attributes:
        path: of it.
        content: its bytes.
        file: what is in it.
    """

    path: Path
    content: bytes
    file: File

    @classmethod
    def read(cls, path: Path) -> "FileOnDisk":
        """The file at ``path``.

        Raises:
            CheckpointError: if it cannot be read.
        """
        content = tflite_content(path)
        return cls(path, content, read_file(content))

    @property
    def input_shapes(self) -> PortShapes:
        """In the file's layout."""
        return tuple(self.file.tensors[i].shape for i in self.file.inputs)

    @property
    def output_shapes(self) -> PortShapes:
        """In the file's layout."""
        return tuple(self.file.tensors[i].shape for i in self.file.outputs)

    @property
    def in_steps(self) -> bool:
        """Whether all outputs are integers of a scale."""
        return all(self.file.tensors[i].quantization is not None for i in self.file.outputs)

    def stores_as(self, other: "FileOnDisk") -> bool:
        """Whether both store their outputs as the same integers."""
        pairs = zip(self.file.outputs, other.file.outputs, strict=True)
        return all(_same_scale(self.file, i, other.file, j) for i, j in pairs)


def _same_scale(one: File, i: int, other: File, j: int) -> bool:
    a, b = one.tensors[i], other.tensors[j]
    if a.dtype != b.dtype or a.quantization is None or b.quantization is None:
        return False
    return np.array_equal(a.quantization.scale, b.quantization.scale) and np.array_equal(
        a.quantization.zero_point, b.quantization.zero_point
    )


def why_not_run(kernels: str, file: FileOnDisk) -> str:
    """Why a file cannot be compared in an interpreter, in words; empty where it can."""
    if kernels != "micro":
        return ""
    try:
        check_ops(file.file)
        require_survival(file.content)
        run_file(file.content, drawn(file.file, 1), kernels=kernels)
    except ExportError as error:
        return f"{file.path} is not run in {INTERPRETERS[kernels]}: {error}"
    return ""


def drawn_numbers(file: File, count: int) -> list[Sample]:
    """Inputs that are drawn over all that the file's can hold, as numbers."""
    return [
        tuple(file.tensors[i].dequantized(x) for i, x in zip(file.inputs, one, strict=True))
        for one in drawn(file, count)
    ]


@dataclass(frozen=True)
class MayDiffer:
    """What may differ.

    Attributes:
        steps: of the outputs' scale; None: anything.
        sqnr: dB that the outputs must have; None: any.
        top1: share of the inputs whose largest output must be the same; None: any.
    """

    steps: int | None
    sqnr: float | None
    top1: float | None

    @classmethod
    def between(
        cls, file: FileOnDisk, other: FileOnDisk | None, steps: int | None, sqnr: float | None, top1: float | None
    ) -> "MayDiffer":
        """What the user says; where nothing, what suits a file and another one, or PyTorch."""
        if steps is None and sqnr is None and other is not None and file.stores_as(other):
            return cls(0, None, top1)
        if steps is None and sqnr is None:
            schemes = [tflite_scheme(one.file) for one in (file, other) if one is not None]
            sqnr = min(LEAST_SQNR[scheme] for scheme in schemes)
        return cls(steps, sqnr, top1)

    def broken_by(self, found: Agreement) -> str:
        """What is not kept, in words; empty where all is."""
        if self.steps is not None and not _steps(found) <= self.steps:
            return f"{self.steps} steps are allowed"
        if self.sqnr is not None and not found.sqnr >= self.sqnr:
            return f"{self.sqnr:.1f} dB are asked for"
        if self.top1 is not None and found.top1 is not None and not found.top1 >= self.top1:
            return f"the same largest output is asked for in {self.top1:.1%}"
        return ""


def how_far(found: Agreement) -> str:
    """How far outputs are apart, in words."""
    steps = _steps(found)
    if found.max_lsb is not None and steps == 0 and found.sqnr == np.inf:
        return "equal to the bit"
    part = f"{found.least.name}: " if found.least.name else ""
    words = [f"{part}{found.sqnr:.1f} dB of signal over noise"]
    if found.max_lsb is not None:
        words.append(f"at most {steps:g} steps apart")
    if found.top1 is not None:
        words.append(f"the same largest output in {found.top1:.1%}")
    return ", ".join(words)


def _steps(found: Agreement) -> float:
    """The largest difference in steps, without what computing it in floats adds."""
    return round(found.max_lsb or 0.0, 3)
