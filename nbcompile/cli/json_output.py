"""``--json -``: the result, and nothing else, on standard output, whatever the user's modules print."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import IO

STDOUT = Path("-")

_results: IO[str] | None = None


@contextmanager
def json_alone(path: Path | None) -> Iterator[None]:
    """Inside, if ``path`` is ``-``, what is printed goes to standard error, and results to standard output.

    A process that has it of its own keeps it so to its end: some libraries print when they are torn down.
    """
    global _results
    if path != STDOUT or sys.stdout is None or sys.stderr is None:
        yield
        return
    sys.stdout.flush()
    with ExitStack() as stack:
        _results = sys.stdout
        own = sys.__stdout__
        if own is not None and sys.stdout is own:
            _results = stack.enter_context(os.fdopen(os.dup(own.fileno()), "w", encoding=own.encoding))
            os.dup2(sys.stderr.fileno(), own.fileno())  # what C++ prints, too
        stack.enter_context(redirect_stdout(sys.stderr))
        stack.callback(_forget)
        yield


def _forget() -> None:
    global _results
    _results = None


def result_stream() -> IO[str]:
    """Where a result goes that is to be alone."""
    return _results or sys.stdout
