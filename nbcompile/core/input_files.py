"""Files that are read: they are files, and the same ones from the first look to the last."""

import hashlib
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from nbcompile.core.errors import CheckpointError, ExportError, NBCompileError

Words = ParamSpec("Words")
Told = TypeVar("Told")


def require_file(path: str | os.PathLike[str]) -> Path:
    """``path``, unless something is there that is no file: a pipe gives its bytes once, a device without end.

    Raises:
        CheckpointError: if that is so.
    """
    if os.path.isdir(path):
        raise CheckpointError(f"{path} is a folder, not a file")
    if os.path.exists(path) and not os.path.isfile(path):
        raise CheckpointError(
            f"{path} cannot be read: it is no file, but a device, a pipe or a socket; copy what it gives into a file"
        )
    return Path(path)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The digest of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_written(path: Path, digest: str, temporary: Path | None = None) -> None:
    """Check that a file, or the temporary that is to become it, still holds what was written and checked.

    Raises:
        ExportError: if another program has written it meanwhile.
    """
    held = temporary or path
    if not held.is_file() or sha256_of(held) != digest:
        raise ExportError(f"{path} is not what this run wrote: another one wrote it meanwhile; run one at a time")


def of_one_state(read: Callable[Words, Told]) -> Callable[Words, Told]:
    """``read``, which looks at files several times, but what it found is refused if one of them was written meanwhile.

    Raises:
        CheckpointError: if that is so; of half of one file and half of another nothing is true.
    """

    @wraps(read)
    def watched(*args: Words.args, **kwargs: Words.kwargs) -> Told:
        before = {path: _state(path) for path in (*args, *kwargs.values()) if isinstance(path, (str, Path))}
        try:
            found = read(*args, **kwargs)
        except NBCompileError as error:
            _require_same(before, error)
            raise
        _require_same(before)
        return found

    return watched


def _require_same(before: dict[str | Path, object], error: NBCompileError | None = None) -> None:
    for path, state in before.items():
        if _state(path) != state:
            raise CheckpointError(
                f"{path} was written while it was read: wait for its writer, then try again"
            ) from error


def _state(path: str | Path) -> object:
    """What changes with every writing; None where there is no file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
