"""Keep what C++ code writes to the standard error of this process."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stderr_kept() -> Iterator[Callable[[], str]]:
    """Nothing appears on standard error inside the block; the function that is yielded gives what was written so far.

    It works on the descriptor, since interpreters write from C++; so it takes the standard error of all threads.
    """
    sys.stderr.flush()
    shown = os.dup(2)
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 2)
            try:
                yield lambda: _content(file.fileno())
            finally:
                sys.stderr.flush()
                os.dup2(shown, 2)
    finally:
        os.close(shown)


def _content(descriptor: int) -> str:
    """All that was written; the place behind it, which the descriptors share, is where writing goes on."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, size).decode(errors="replace")
