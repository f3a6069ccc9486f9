"""First floor: one file format a folder; exporters never optimise.

``FORMATS`` is the one table: a row has everything that the rest of the house asks of a format. What a row names, and
the packages that this needs, are imported when they are first used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nbcompile.core.errors import UsageError, missing_extra
from nbcompile.core.input_files import require_file
from nbcompile.core.progress import step

if TYPE_CHECKING:
    from torch import Tensor

    from nbcompile.core.example import Inputs
    from nbcompile.exporters.base import Exporter, FileLayer

if __name__ != "nbcompile.exporters":
    raise ImportError("import nbcompile.exporters: the bare name 'exporters' would load a second copy")


@dataclass(frozen=True)
class Format:
    """One row of the table; functions are named ``module:function``.

    Attributes:
        suffix: of the files, with the dot.
        writer: an `nbcompile.exporters.base.Exporter`.
        extra: of nbcompile, that brings what the functions import; None: the core install does.
        graph: whether the file holds a graph, which is lowered to deploy form first; else it holds weights only.
        layers: a path to a tuple of `nbcompile.exporters.base.FileLayer`; None: `inspect` and `verify` cannot read it.
        input_sizes: a path to the shapes of the inputs, at batch size 1 where the batch is symbolic.
        runner: a path, and inputs of several calls, to the outputs of each, tensors in order; None: nothing but the
            export compares it with PyTorch.
        batch: a path to the one batch size that the file takes, or None where it takes any; None: any.
        quantized: a path to whether the file rounds what it computes to integers; None: none does.
        any_batch: whether its files take any batch size; the option ``batch`` then makes it one.
        pipeline: what the front runs in place of the exporter, which it calls in the end: passes, calibration. Its
            options are those of the format.
        verifier: for files of a device: what the front runs in place of its own comparison; None: that compares layers
            by their names, and outputs.
    """

    suffix: str
    writer: str
    extra: str | None = None
    graph: bool = False
    layers: str | None = None
    input_sizes: str | None = None
    runner: str | None = None
    batch: str | None = None
    quantized: str | None = None
    any_batch: bool = False
    pipeline: str | None = None
    verifier: str | None = None

    @property
    def comparable(self) -> bool:
        """Whether `verify` can compare a file with a network: its layers, and its outputs."""
        return None not in (self.layers, self.input_sizes, self.runner)

    def exporter(self) -> "Exporter":
        """Import the exporter.

        Raises:
            UsageError: if a package that it needs is not installed.
        """
        return cast("Exporter", self._function("writer", "writing"))

    def read_layers(self, path: str | PathLike[str]) -> "tuple[FileLayer, ...]":
        """The layers of a file.

        Raises:
            UsageError: if a package is not installed.
            CheckpointError: if the file cannot be read.
        """
        return cast("tuple[FileLayer, ...]", self._function("layers", "reading")(require_file(path)))

    def read_input_sizes(self, path: str | PathLike[str]) -> tuple[tuple[int, ...], ...]:
        """The shapes of a file's inputs, at batch size 1 where its batch is symbolic.

        Raises:
            UsageError: if a package is not installed.
            CheckpointError: if the file cannot be read.
        """
        return cast("tuple[tuple[int, ...], ...]", self._function("input_sizes", "reading")(require_file(path)))

    def outputs(self, path: str | PathLike[str], calls: "Sequence[Inputs]") -> "list[list[Tensor]]":
        """Run a file in the format's own runtime: the outputs of each call, in order.

        Args:
            path: the file.
            calls: inputs.

        Raises:
            UsageError: if a package is not installed.
            ExportError: if the runtime cannot load or run it.
        """
        return cast("list[list[Tensor]]", self._function("runner", "running")(require_file(path), calls))

    def read_batch(self, path: str | PathLike[str]) -> int | None:
        """The one batch size that a file takes; None where it takes any.

        Raises:
            UsageError: if a package is not installed.
            CheckpointError: if the file cannot be read.
        """
        return cast("int | None", self._function("batch", "reading")(require_file(path))) if self.batch else None

    def is_quantized(self, path: str | PathLike[str]) -> bool:
        """Whether a file rounds what it computes to integers.

        Raises:
            UsageError: if a package is not installed.
            CheckpointError: if the file cannot be read.
        """
        return self.quantized is not None and bool(self._function("quantized", "reading")(require_file(path)))

    def comparison(self) -> Any:
        """Import what compares files of a device.

        Raises:
            UsageError: if a package that it needs is not installed.
        """
        return self._function("verifier", "comparing")

    def _function(self, column: str, doing: str) -> Any:
        where: str | None = getattr(self, column)
        if where is None:
            raise UsageError(f"{doing} {self.suffix} files cannot be done: their row of FORMATS names no {column}")
        try:
            with step(f"loading what {doing} {self.suffix} files needs"):
                return imported(where)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if self.extra is None or package == "nbcompile":
                raise
            raise missing_extra(self.extra, f"{doing} {self.suffix} files", package) from error


def imported(where: str) -> Any:
    """What ``module:name`` names."""
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


ONNX = Format(
    ".onnx",
    extra="onnx",
    graph=True,
    writer="nbcompile.exporters.to_onnx.export:write_onnx",
    layers="nbcompile.exporters.to_onnx.layers:onnx_layers",
    input_sizes="nbcompile.exporters.to_onnx.file:onnx_input_sizes",
    runner="nbcompile.exporters.to_onnx.check:onnx_outputs",
    batch="nbcompile.exporters.to_onnx.file:onnx_batch",
    quantized="nbcompile.exporters.to_onnx.file:onnx_quantized",
    any_batch=True,
    pipeline="nbcompile.deploy.to_onnx_file:export_onnx",
)
TFLITE = Format(
    ".tflite",
    extra="tflite",
    graph=True,
    writer="nbcompile.exporters.to_tflite.export:write_tflite",
    layers="nbcompile.exporters.to_tflite.file.inspect:tflite_layers",
    input_sizes="nbcompile.exporters.to_tflite.file.inspect:tflite_input_sizes",
    pipeline="nbcompile.deploy.to_device:export_tflite",
    verifier="nbcompile.deploy.device_verification:verify_tflite",
)
STATE_DICT = Format(".pt", writer="nbcompile.exporters.to_state_dict:write_state_dict")
SAFETENSORS = Format(".safetensors", writer="nbcompile.exporters.to_state_dict:write_safetensors")

FORMATS: dict[str, Format] = {row.suffix: row for row in (ONNX, TFLITE, STATE_DICT, SAFETENSORS)}


def format_of(path: str | PathLike[str]) -> Format:
    """The row of the table that the suffix of ``path`` names.

    Raises:
        UsageError: if there is none.
    """
    form = known_format(path)
    if form is None:
        suffix = Path(path).suffix.lower()
        unknown = f"the extension '{suffix}' is unknown" if suffix else "it has no extension"
        raise UsageError(f"cannot write {path}: {unknown}; known are {', '.join(FORMATS)}")
    return form


def known_format(path: str | PathLike[str]) -> Format | None:
    """The row of the table that the suffix of ``path`` names; None if there is none."""
    return FORMATS.get(Path(path).suffix.lower())
