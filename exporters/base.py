"""What every exporter takes and gives back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from nbcompile.core.errors import UsageError
from nbcompile.core.example import Inputs


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """A file that was written, read back in its own runtime, and compared with PyTorch.

    Attributes:
        path: the file.
        format: its format, such as ``onnx``.
        bytes: its size.
        sha256: of its bytes as they were checked, in hexadecimal: whether a file is that of a report, this tells.
        error: the largest relative error that was measured, no unit (`nbcompile.core.numerics.relative_error`).
        tolerance: the largest that was allowed, no unit.
        versions: of the format and of the tools that wrote and checked the file, such as ``opset``.
        notes: what the user should know, one sentence each.
        seconds: wall-clock time of the export, check included.
    """

    path: Path
    format: str
    bytes: int
    sha256: str = ""
    error: float
    tolerance: float
    versions: Mapping[str, str | int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The fields in plain JSON types."""
        return asdict(self) | {"path": str(self.path), "notes": list(self.notes)}


@dataclass(frozen=True)
class FileLayer:
    """One layer of a file, in the order of its graph.

    Attributes:
        name: what `verify` matches with the network's: the layer's qualified name.
        kind: the format's own word for what it computes, such as ``Conv`` or ``CONV_2D int8``.
        macs: multiply-accumulates per sample.
        params: elements of its weights and biases.
    """

    name: str
    kind: str
    macs: int
    params: int


class Exporter(Protocol):
    """Writes one file format: what ``writer`` names in a row of `nbcompile.exporters.FORMATS`.

    It writes to a temporary file, checks that by reading it back, and only then gives it its name
    (`nbcompile.core.files.atomic`). It never optimises: it writes the graph that it is given.
    """

    def __call__(
        self, graph: nn.Module, inputs: Inputs, path: Path, *, reference: nn.Module | None = None, **options: Any
    ) -> ExportResult:
        """Write ``graph`` to ``path``.

        Args:
            graph: on the CPU, in eval mode: in deploy form, or the user's model for formats that hold weights only.
            inputs: one tensor per positional input of ``graph``, batch first.
            path: the output file; its suffix chose this exporter.
            reference: the model whose outputs the file must give; None: ``graph`` itself.
            options: of this format; each is a keyword argument of the exporter.

        Raises:
            ExportError: if the format cannot express the graph, or the file does not give the same outputs.
            UsageError: if the file cannot be written.
        """
        ...


def require_batch(batch: int) -> None:
    """Raise UsageError if ``batch``, the one batch size that a file is to take, is none."""
    if batch < 1:
        raise UsageError(f"batch={batch} is no batch size: give 1 or more")
