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
                yield lambda: os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")
            finally:
                sys.stderr.flush()
                os.dup2(shown, 2)
    finally:
        os.close(shown)
