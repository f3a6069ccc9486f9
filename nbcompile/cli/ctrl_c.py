"""Ctrl-C ends in one line, whatever the libraries below make of it."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from types import FrameType

STOPPED = "nbcompile: error: stopped; every output file is as it was, or new and whole"
STOPPED_EXIT = 130
PATIENCE_AFTER = 5.0
"""Seconds in which the work may come to its end: C++ may not hear the signal, nor a process that waits for others."""

_pressed = _told = False


def is_stopped() -> bool:
    """Whether it was pressed: then an error is no error."""
    return _pressed


@contextmanager
def one_line() -> Iterator[None]:
    """Inside, Ctrl-C is said in one line, and the process exits with `STOPPED_EXIT`.

    Behind it the process ends, and there is nothing to stop.
    """
    global _pressed, _told
    _pressed = _told = False
    heard, hear = os.pipe()
    if os.name != "nt":
        os.set_blocking(hear, False)
    Thread(target=_insist, args=(heard, _standard_error()), daemon=True).start()
    try:
        signal.signal(signal.SIGINT, _press)
        signal.set_wakeup_fd(hear, warn_on_full_buffer=False)
        try:
            yield
        finally:  # here, where what is pressed at the last moment is still heard
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except BaseException as error:
        if not (_pressed or isinstance(error, KeyboardInterrupt)):
            raise
        _tell(_standard_error())
        exec("")  # Python ends by the signal, not by our code, if the last exec of a string was left by Ctrl-C
        # of several training processes one tells; where another fails, Lightning kills them all, before that has told
        sys.exit(STOPPED_EXIT if _is_first() else 0)
    finally:
        signal.set_wakeup_fd(-1)
        os.close(hear)


def _press(number: int, frame: FrameType | None) -> None:
    global _pressed
    _pressed = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
    raise KeyboardInterrupt


def _insist(heard: int, stderr: int) -> None:
    """In a thread of its own: end the process if its work does not, once the signal has come."""
    while came := os.read(heard, 1):
        if came[0] == signal.SIGINT:
            time.sleep(PATIENCE_AFTER)
            _tell(stderr)
            os._exit(STOPPED_EXIT)


def _standard_error() -> int | None:
    """A copy of where it goes now, which exporters take away for a while; None where there is none."""
    try:
        return os.dup(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):
        return None


def _tell(stderr: int | None) -> None:
    global _told
    if stderr is not None and _is_first() and not _told:
        _told = True
        os.write(stderr, f"{STOPPED}\n".encode())


def _is_first() -> bool:
    """Whether this is the first of the training processes, or the only one."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
