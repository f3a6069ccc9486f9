"""Output files that are whole or not there.

A file is written under a temporary name in the folder where it will live, and renamed when it is complete. Whatever
moment a run is killed at, the output name holds the old bytes or the complete new ones. Beside the temporary lies an
empty file whose lock says that its run is alive: Windows lets nobody write or rename a file that is locked itself.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nbcompile.core.errors import UsageError

if TYPE_CHECKING:
    from filelock import BaseFileLock


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path; what is written there becomes ``path`` when the block ends without an exception.

    The temporary is ``.NAME.nbcompile-RANDOM`` plus the suffix of ``path`` (writers look at it), in the same folder.
    It is removed if the block raises; after a kill the next run for the same name removes it. A symbolic link is
    followed: the file that it points to is replaced. The new file has the permissions of the old one, or what the
    umask gives.

    Args:
        path: the output file; its folder must exist.

    Raises:
        UsageError: if the temporary cannot be created, or cannot take the place of ``path``.
    """
    target = Path(os.path.realpath(path))
    check_target(target)
    with _temporary(target) as temporary:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        with suppress(FileNotFoundError):
            temporary.chmod(target.stat().st_mode & 0o7777)
        try:
            os.replace(temporary, target)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        _sync_folder(target.parent)


def check_target(path: str | os.PathLike[str]) -> None:
    """Find out before long work whether ``path`` can be written; leftovers of killed runs are removed.

    Raises:
        UsageError: if ``path`` is a folder, or its folder is missing, is a file, or is not writable.
    """
    target = Path(os.path.realpath(path))
    try:
        if target.is_dir():
            raise UsageError(f"cannot write {path}: it is a folder; name a file in it")
        if not target.parent.exists():
            raise UsageError(f"cannot write {path}: the folder {target.parent} does not exist; create it first")
        if not target.parent.is_dir():
            raise UsageError(f"cannot write {path}: {target.parent} is a file, not a folder")
        _sweep(target)
    except PermissionError as error:
        raise UsageError(f"cannot write {path}: {error.strerror} ({error.filename})") from error
    # Permission bits do not tell (root, read-only mounts, quotas): creating a file does.
    with _temporary(target):
        pass


def with_slashes(path: str) -> str:
    """``path`` with ``/`` between its folders, on Windows, too: to look for the place of a module in it."""
    return path.replace("\\", "/")


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A new empty temporary of ``target``; it is removed, if it is still there, when the block ends."""
    with ExitStack() as undo:
        try:
            held = None
            while held is None:  # a lock may be swept before it is locked
                run = _prefix(target) + secrets.token_hex(_DIGITS // 2)
                held = _lock(target.with_name(run + _LOCK))
            undo.callback(_unlock, held)
            temporary = target.with_name(run + target.suffix)
            # Not tempfile: it makes files that only their owner can read.
            os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
            undo.callback(temporary.unlink, missing_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot write {target}: no file can be created in {target.parent} ({error.strerror})"
            ) from error
        yield temporary


def _sweep(target: Path) -> None:
    """Remove the temporaries of ``target`` whose runs are dead: a killed run holds no lock."""
    prefix = _prefix(target)
    for leftover in [file for file in target.parent.iterdir() if file.name.startswith(prefix)]:
        run = leftover.name[: len(prefix) + _DIGITS]
        with suppress(PermissionError):  # it is another user's
            held = _lock(target.with_name(run + _LOCK))
            if held is None:
                continue
            try:
                leftover.unlink(missing_ok=True)
            finally:
                _unlock(held)


_LOCK = "-lock"  # no suffix: a temporary may have any
_DIGITS = 8


def _prefix(target: Path) -> str:
    """What the names of all temporaries of ``target`` begin with; digits of the run follow."""
    return f".{target.name}.nbcompile-"


def _lock(path: Path) -> "BaseFileLock | None":
    """Create and lock ``path``; the system gives the lock back when the process ends. None if it is held."""
    from filelock import FileLock, Timeout

    lock = FileLock(path, blocking=False, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def _unlock(lock: "BaseFileLock") -> None:
    lock.release()
    with suppress(FileNotFoundError, PermissionError):  # a sweep took it meanwhile, and removes it
        os.unlink(lock.lock_file)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut; Windows opens no folders."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
