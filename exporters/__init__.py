"""First floor: one file format per file; exporters never optimise.

``FORMATS`` is the one table: suffix to exporter. An exporter, and what it needs, is imported when it is first used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from nbcompile.core.errors import UsageError, missing_extra

if TYPE_CHECKING:
    from nbcompile.core.example import Inputs
    from nbcompile.exporters.base import Exporter
    from nbcompile.exporters.to_onnx.layers import OnnxLayer
    from nbcompile.exporters.to_tflite.file.inspect import TfliteLayer

if __name__ != "nbcompile.exporters":
    raise ImportError("import nbcompile.exporters: the bare name 'exporters' would load a second copy")


@dataclass(frozen=True)
class Format:
    """One row of the table.

    Attributes:
        suffix: of the files, with the dot.
        module: that has the function ``export``, an `nbcompile.exporters.base.Exporter`.
        extra: of nbcompile, that brings what the module imports; None: the core install does.
        graph: whether the file holds a graph, which is lowered to deploy form first; else it holds weights only.
    """

    suffix: str
    module: str
    extra: str | None
    graph: bool

    def exporter(self) -> "Exporter":
        """Import the exporter.

        Raises:
            UsageError: if a package that it needs is not installed.
        """
        module = _load(self.module, self.extra, f"writing {self.suffix} files")
        return cast("Exporter", module.export)


FORMATS: dict[str, Format] = {
    row.suffix: row
    for row in (
        Format(".onnx", "nbcompile.exporters.to_onnx.export", extra="onnx", graph=True),
        Format(".tflite", "nbcompile.exporters.to_tflite.export", extra="tflite", graph=True),
        Format(".pt", "nbcompile.exporters.to_state_dict", extra=None, graph=False),
        Format(".safetensors", "nbcompile.exporters.to_state_dict", extra=None, graph=False),
    )
}


def format_of(path: str | PathLike[str]) -> Format:
    """The row of the table that the suffix of ``path`` names.

    Raises:
        UsageError: if there is none.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        found = f"the extension '{suffix}' is unknown" if suffix else "it has no extension"
        raise UsageError(f"cannot write {path}: {found}; known are {', '.join(FORMATS)}")
    return FORMATS[suffix]


def tflite() -> ModuleType:
    """The module `nbcompile.exporters.to_tflite.export`, imported when it is first used.

    Raises:
        UsageError: if a package that it needs is not installed.
    """
    row = FORMATS[".tflite"]
    return _load(row.module, row.extra, "writing .tflite files")


def read_layers(path: str | PathLike[str]) -> "tuple[OnnxLayer, ...] | tuple[TfliteLayer, ...]":
    """The layers of an ONNX or TFLite file, each with ``name``, ``kind``, ``macs`` and ``params``.

    Raises:
        UsageError: if a package is not installed.
        CheckpointError: if the file cannot be read.
    """
    if Path(path).suffix.lower() == ".tflite":
        inspecting = _load("nbcompile.exporters.to_tflite.file.inspect", "tflite", "reading .tflite files")
        return cast("tuple[TfliteLayer, ...]", inspecting.read_layers(Path(path)))
    module = _load("nbcompile.exporters.to_onnx.layers", "onnx", "reading .onnx files")
    return cast("tuple[OnnxLayer, ...]", module.read_layers(path))


def _load(module: str, extra: str | None, what: str) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if extra is None or package == "nbcompile":
            raise
        raise missing_extra(extra, what, package) from error


def file_error(path: str | PathLike[str], cases: "Sequence[tuple[Inputs, Any]]") -> float:
    """Run an ONNX file in ONNX Runtime: the largest relative error of its outputs, no unit.

    Args:
        path: the file.
        cases: inputs, and the outputs that are expected for them.

    Raises:
        UsageError: if onnxruntime is not installed.
        ExportError: if ONNX Runtime cannot load or run it.
    """
    module = _load("nbcompile.exporters.to_onnx.check", "onnx", "running .onnx files")
    return cast(float, module.measure(Path(path), [module.Case(inputs, output) for inputs, output in cases]))


def input_sizes(path: str | PathLike[str]) -> tuple[tuple[int, ...], ...]:
    """The input shapes of an ONNX file, at batch size 1 where its batch is symbolic.

    Raises:
        UsageError: if onnx is not installed.
        CheckpointError: if the file cannot be read.
    """
    module = _load("nbcompile.exporters.to_onnx.file", "onnx", "reading .onnx files")
    return cast("tuple[tuple[int, ...], ...]", module.input_sizes(Path(path)))
