"""Ctrl-C ends in one line, whatever the libraries below make of it."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = "nbcompile: error: stopped; every output file is as it was, or new and whole"
STOPPED_EXIT = 130
_pressed = False


def is_stopped() -> bool:
    """Whether it was pressed: then an error is no error."""
    return _pressed


@contextmanager
def one_line() -> Iterator[None]:
    """Inside, Ctrl-C is said in one line, and the process exits with `STOPPED_EXIT`."""
    global _pressed
    _pressed = False
    before = signal.signal(signal.SIGINT, _press)
    try:
        yield
    except BaseException as error:
        if not (_pressed or isinstance(error, KeyboardInterrupt)):
            raise
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of several training processes one tells
            print(STOPPED, file=sys.stderr)
        sys.exit(STOPPED_EXIT)
    finally:
        signal.signal(signal.SIGINT, before)


def _press(number: int, frame: FrameType | None) -> None:
    global _pressed
    _pressed = True
    raise KeyboardInterrupt
