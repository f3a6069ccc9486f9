"""Ctrl-C ends in one line, whatever the libraries below make of it.

It is raised where it can be: C++ that calls Python may not stand an exception (torch's dispatcher: the process aborts),
so beneath such a library the wish is kept, and asked again a moment later. Where no such moment comes, a thread of its
own ends the process, and removes what is half-written.
"""

import atexit
import os
import signal
import sys
import time
from _thread import interrupt_main
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock, Thread
from types import FrameType
from typing import NoReturn

STOPPED = "nbcompile: error: stopped; every output file is as it was, or new and whole"
STOPPED_EXIT = 130
UNRAISED = 1.0
"""Seconds in which a moment may come where it can be raised: C++ may not hear the signal, nor a library come back."""
UNWINDING = 5.0
"""Seconds from there on in which the work may come to its end, which waits for other processes, perhaps."""
_AGAIN = 0.01
"""Seconds until it is asked again whether it can be raised."""

CALL_PYTHON = {"torch", "tensorflow", "onnx", "onnxruntime", "onnxscript", "onnxsim", "ai_edge_litert", "tflite_micro"}
"""Packages whose C++ calls Python: beneath their code nobody knows whether C++ lies between."""

SHOW_CURSOR = b"\x1b[?25h"

undone_before_the_end: list[Callable[[], object]] = []
"""Called where no ``finally`` is, in another thread."""

_pressed = _raised = False
_telling = Lock()


def is_stopped() -> bool:
    """Whether it was pressed: then an error is no error."""
    return _pressed


@contextmanager
def one_line() -> Iterator[None]:
    """Inside, Ctrl-C is said in one line, and the process exits with `STOPPED_EXIT`.

    There the process ends, and behind the block there is nothing to stop.
    """
    global _pressed, _raised, _telling
    _pressed = _raised = False
    _telling = Lock()
    undone_before_the_end.clear()
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
        if _pressed:  # and could not be raised until all was done
            raise KeyboardInterrupt
    except BaseException as error:
        if not (_pressed or isinstance(error, KeyboardInterrupt)):
            raise
        _tell(_standard_error())
        _end()
    finally:
        signal.set_wakeup_fd(-1)
        os.close(hear)


def _end() -> NoReturn:
    """As Python ends, without taking down what is in memory: behind a training that takes seconds."""
    with suppress(BaseException):
        sys.stdout.flush()
        atexit._run_exitfuncs()
    os._exit(_exit_code())


def _press(number: int, frame: FrameType | None) -> None:
    global _pressed, _raised
    _pressed = True
    if not _is_beneath_cpp(frame):
        _raised = True
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
        raise KeyboardInterrupt


def _is_beneath_cpp(frame: FrameType | None) -> bool:
    """Whether a library whose C++ calls Python is among the callers."""
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] in CALL_PYTHON:
            return True
        frame = frame.f_back
    return False


def _insist(heard: int, stderr: int) -> None:
    """In a thread of its own: once the signal has come, ask again until it is raised; end what does not end."""
    while came := os.read(heard, 1):
        if came[0] == signal.SIGINT:
            end = time.monotonic() + UNRAISED
            while not _raised and time.monotonic() < end:
                time.sleep(_AGAIN)
                interrupt_main()
            if _raised:
                time.sleep(UNWINDING)
            _undo()
            if stderr is not None and os.isatty(stderr):
                os.write(stderr, SHOW_CURSOR)
            _tell(stderr)
            os._exit(_exit_code())


def _undo() -> None:
    from nbcompile.core.files import remove_temporaries

    for undo in (*undone_before_the_end, remove_temporaries):
        with suppress(Exception):
            undo()


def _standard_error() -> int | None:
    """A copy of where it goes now, which exporters take away for a while; None where there is none."""
    try:
        return os.dup(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):
        return None


def _tell(stderr: int | None) -> None:
    if stderr is not None and _is_first() and _telling.acquire(blocking=False):
        os.write(stderr, f"{STOPPED}\n".encode())


def _exit_code() -> int:
    """Of several training processes one tells; where another fails, Lightning kills them all before that has told."""
    return STOPPED_EXIT if _is_first() else 0


def _is_first() -> bool:
    """Whether this is the first of the training processes, or the only one."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
