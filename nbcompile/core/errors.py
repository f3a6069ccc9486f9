"""Every error nbcompile raises on purpose.

::

    NBCompileError          exit code 1
    ├── CaptureError        1  the model cannot be traced into a graph
    ├── PreconditionError   1  the input is not ready for a pass; the caller can fix it
    ├── PostconditionError  1  a pass left a wrong graph; nbcompile must fix it
    ├── ExportError         1  the target format cannot express the model
    ├── VerificationError   1  a check by numbers or by structure failed
    ├── CheckpointError     2  a file cannot be read, or is not what it should be
    └── UsageError          2  wrong arguments, or a missing extra

A message says who, what was found, what was needed, and what to do, in one sentence or two. It is printable, whatever
the names in it.
"""

from typing import ClassVar

from nbcompile.core.words import printable


class NBCompileError(Exception):
    """Base class; ``exit_code`` is what the command line returns."""

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class CaptureError(NBCompileError):
    """The model cannot be traced into a graph.

    Attributes:
        place: file, line and function of the code that is why, where it is known.
    """

    place: str | None = None


class PreconditionError(NBCompileError):
    """The input is not ready for a pass; the caller can fix it."""


class PostconditionError(NBCompileError):
    """A pass left a wrong graph; nbcompile must fix it."""


class ExportError(NBCompileError):
    """The target format cannot express the model, or the written file failed its check."""


class VerificationError(NBCompileError):
    """A check by numbers or by structure failed."""


class CheckpointError(NBCompileError):
    """A file cannot be read, or is not what it should be."""

    exit_code: ClassVar[int] = 2


class UsageError(NBCompileError):
    """Wrong arguments, or an optional dependency that is not installed."""

    exit_code: ClassVar[int] = 2


def missing_extra(extra: str, what: str, package: str) -> UsageError:
    """The one sentence for an optional dependency that is not installed.

    Args:
        extra: the extra of nbcompile that brings it, such as ``onnx``.
        what: what was attempted, such as ``exporting to ONNX``.
        package: the package that could not be imported.
    """
    return UsageError(f"{what} needs {package}, which is not installed: pip install 'nbcompile[{extra}]'")
