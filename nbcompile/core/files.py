"""Output files that are whole or not there.

A file is written under a temporary name in the folder where it will live, and renamed when it is complete. Whatever
moment a run is killed at, the output name holds the old bytes or the complete new ones. Beside the temporary lies an
empty file whose lock says that its run is alive: Windows lets nobody write or rename a file that is locked itself.
"""

import errno
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nbcompile.core.errors import NBCompileError, UsageError

if TYPE_CHECKING:
    from filelock import BaseFileLock

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
"""What the system says where it takes no more bytes."""

_unfinished: set[str] = set()
"""Temporaries of this process, and their locks."""


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path; what is written there becomes ``path`` when the block ends without an exception.

    The temporary is ``.NAME.nbcompile-RANDOM`` plus the suffix of ``path`` (writers look at it), in the same folder.
    It is removed if the block raises; after a kill the next run for the same name removes it. A symbolic link is
    followed: the file that it points to is replaced. The new file has the permissions of the old one, or what the
    umask gives, whatever its writer made of them.

    Args:
        path: the output file; its folder must exist.

    Raises:
        UsageError: if the temporary cannot be created or filled, or cannot take the place of ``path``.
    """
    check_target(path)
    target = Path(os.path.realpath(path))
    with _temporary(target) as temporary:
        mode = temporary.stat().st_mode
        with _no_room_said(path):
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
        try:
            with suppress(FileNotFoundError):
                mode = target.stat().st_mode
            temporary.chmod(mode & 0o7777)
            os.replace(temporary, target)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        _sync_folder(target.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder, which becomes ``path`` when the block ends without an exception; see `atomic`.

    Raises:
        UsageError: as of `check_target`, or if the folder cannot take its name.
    """
    check_target(path, folder=True)
    target = Path(os.path.realpath(path))
    with _temporary(target, folder=True) as temporary:
        with _no_room_said(path):
            yield temporary
        try:
            if target.exists():
                target.rmdir()  # it is empty; Windows renames over no folder
            os.rename(temporary, target)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error


def check_target(path: str | os.PathLike[str], folder: bool = False) -> None:
    """Find out before long work whether a file, or an empty ``folder``, can be written; leftovers are removed.

    Raises:
        UsageError: if ``path`` is a folder or a device, or its folder is missing, is a file, or is not writable.
    """
    try:
        target = Path(os.path.realpath(path))
        if folder and os.path.exists(path) and not (target.is_dir() and not os.listdir(target)):
            raise UsageError(f"cannot write the folder {path}: it is there, and no empty folder; move it away")
        if not folder and target.is_dir():
            raise UsageError(f"cannot write {path}: it is a folder; name a file in it")
        if not folder and os.path.exists(path) and not os.path.isfile(path):  # /dev/stdout's real path may be none
            raise UsageError(f"cannot write {path}: it is no file, but a device, a pipe or a socket; name a file")
        if not target.parent.exists():
            raise UsageError(f"cannot write {path}: the folder {target.parent} does not exist; create it first")
        if not target.parent.is_dir():
            raise UsageError(f"cannot write {path}: {target.parent} is a file, not a folder")
        _sweep(target)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror} ({error.filename or 'the current folder'})") from error
    except ValueError as error:
        raise UsageError(f"cannot write {path}: it is no name of a file ({error})") from error
    # Permission bits do not tell (root, read-only mounts, quotas): creating a file does.
    with _temporary(target, folder):
        pass


def check_outputs(outputs: Sequence[Path], sources: Iterable[str | Path] = ()) -> None:
    """Find out before any work whether all files of one command can be written, and each is a file of its own.

    Args:
        outputs: all that the command writes.
        sources: what it reads; what is no file is passed over.

    Raises:
        UsageError: as of `check_target`, if two outputs are the same file, or one is read; by whatever path or link.
    """
    for path in outputs:
        check_target(path)
    require_own_files(outputs, [source for source in sources if os.path.isfile(source)])


def require_own_files(outputs: Sequence[Path], read: Sequence[str | Path] = ()) -> None:
    """Check that no two files are the same, by whatever path or link, nor one of those that are ``read``.

    Raises:
        UsageError: with the first that is.
    """
    for number, path in enumerate(outputs):
        if source := next((one for one in read if _is_same(path, one)), None):
            raise UsageError(f"cannot write {path}: it is what is read{_also(path, source)}; give it another name")
        if other := next((one for one in outputs[:number] if _is_same(path, one)), None):
            raise UsageError(
                f"cannot write {path}: another output is the same file{_also(path, other)}; give it another name"
            )


@contextmanager
def _no_room_said(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except NBCompileError:  # of another file, perhaps, that is written in the same block
        raise
    except Exception as error:
        if (full := no_room(error)) is None:
            raise
        raise UsageError(f"cannot write {path}: {full.strerror}; it is as it was") from error


def no_room(error: BaseException | None) -> OSError | None:
    """The system's error that is behind ``error``, if it is that no more can be written: libraries hide it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def with_slashes(path: str) -> str:
    """``path`` with ``/`` between its folders, on Windows, too: to look for the place of a module in it."""
    return path.replace("\\", "/")


def _also(path: Path, other: str | Path) -> str:
    return "" if str(path) == str(other) else f" ({other})"


def _is_same(one: str | Path, other: str | Path) -> bool:
    """Whether two names are those of one file, which need not be there."""
    with suppress(OSError):
        if os.path.samefile(one, other):
            return True
    return os.path.normcase(os.path.realpath(one)) == os.path.normcase(os.path.realpath(other))


def remove_temporaries() -> None:
    """Remove what is half-written, of all threads: for a process that is ended without its ``finally`` blocks."""
    for path in tuple(_unfinished):
        with suppress(OSError):
            _remove(Path(path))


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def _temporary(target: Path, folder: bool = False) -> Iterator[Path]:
    """A new empty temporary of ``target``; it is removed, if it is still there, when the block ends."""
    with ExitStack() as undo:
        try:
            held, tries = None, 0
            while held is None:  # a lock may be swept before it is locked
                if (tries := tries + 1) > _TRIES:
                    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
                run = _prefix(target) + os.urandom(_DIGITS // 2).hex()
                names = [str(target.with_name(run + suffix)) for suffix in (_LOCK, target.suffix)]
                _unfinished.update(names)
                undo.callback(_unfinished.difference_update, names)
                held = _lock(target.with_name(run + _LOCK))
            undo.callback(_unlock, held)
            temporary = target.with_name(run + target.suffix)
            # Not tempfile: it makes files that only their owner can read.
            temporary.mkdir() if folder else os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
            undo.callback(_remove, temporary)
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
                _remove(leftover)
            finally:
                _unlock(held)


_LOCK = "-lock"  # no suffix: a temporary may have any
_DIGITS = 8
_WAIT = 10.0
_TRIES = 100
"""Locks that may be lost to sweeps: more are lost where files cannot be locked at all."""


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


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Files that belong together get their names in this block: other such blocks wait, those of other processes, too.

    For at most ``_WAIT`` seconds: who is stopped there must not stop all others. Windows locks no folders: not there.
    """
    if os.name == "nt":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        end = time.monotonic() + _WAIT
        while time.monotonic() < end:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:  # a file system that locks none
                break
            else:
                break
        yield
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut; Windows opens no folders."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
