"""Output files that are whole or not there.

A file is written under a temporary name in the folder where it will live, and renamed when it is complete. Whatever
moment a run is killed at, the output name holds the old bytes or the complete new ones. Linux and macOS: locks are
POSIX ones.
"""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nbcompile.core.errors import UsageError


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
    temporary, descriptor = _create(target)
    try:
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
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


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
    temporary, descriptor = _create(target)
    temporary.unlink()
    os.close(descriptor)


def _create(target: Path) -> tuple[Path, int]:
    """A new empty temporary of ``target``, and the descriptor whose lock shows that its run is alive."""
    while True:
        temporary = target.with_name(f".{target.name}.nbcompile-{secrets.token_hex(4)}{target.suffix}")
        try:
            # Not tempfile: it makes files that only their owner can read.
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(
                f"cannot write {target}: no file can be created in {target.parent} ({error.strerror})"
            ) from error
        if _lock(descriptor) and temporary.exists():  # else another run swept it before the lock was taken
            return temporary, descriptor
        os.close(descriptor)


def _sweep(target: Path) -> None:
    """Remove the temporaries of ``target`` whose runs are dead: a killed run holds no lock."""
    prefix = f".{target.name}.nbcompile-"
    for leftover in target.parent.iterdir():
        if not leftover.name.startswith(prefix):
            continue
        with suppress(FileNotFoundError, PermissionError):  # another run removed it, or it is another user's
            descriptor = os.open(leftover, os.O_RDWR)
            try:
                if _lock(descriptor):
                    leftover.unlink()
            finally:
                os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Take the lock of an open file, which the kernel gives back when the process ends; False if it is held."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
