"""What a command is doing, in a few lines at the bottom of a terminal, which are gone when it is done.

    writing tiny.tflite                                  0:12
      trying: equalized (2 of 4)                         0:03
        calibrating               ━━━━━━━━━━       31/64 0:01

They stand there only while something is being done (`nbcompile.core.progress`): tables and complaints come after them.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import IO, TYPE_CHECKING

from nbcompile.cli.ctrl_c import undone_before_the_end
from nbcompile.core.words import printable

if TYPE_CHECKING:
    from rich.table import Table

    from nbcompile.core.progress import StepEvent

AT_ONCE = 0.3
"""Seconds: what takes less is not shown."""

_BAR = 20
"""Columns."""


@contextmanager
def progress_shown() -> Iterator[None]:
    """Show steps on standard error, if that is a terminal that can take lines back; else nothing."""
    if sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        yield
        return
    from nbcompile.core.progress import listening

    # A descriptor of its own: to hear what C++ says, exporters take standard error's away for a while.
    copy = os.dup(sys.stderr.fileno())
    with (
        os.fdopen(copy, "w", encoding=sys.stderr.encoding, errors="replace") as terminal,
        ExitStack() as shown,
        listening(lines := StepLines(terminal, shown)),
    ):
        undone_before_the_end.append(lines.end)
        yield


class StepLines:
    """A listener that shows the steps that are going on, one line each, those inside others indented.

    Args:
        terminal: where.
        shown: what is shown is entered here; closed when nothing is going on any more, and by the caller in any case.
    """

    def __init__(self, terminal: IO[str], shown: ExitStack) -> None:
        self._terminal, self._shown, self._lock = terminal, shown, Lock()
        self._steps: dict[int, tuple[StepEvent, float]] = {}
        self._over = False

    def end(self) -> None:
        """Take the lines back and show none any more; from any thread."""
        self._over = True
        self._shown.close()

    def __call__(self, event: "StepEvent") -> None:
        """Show one event."""
        if self._over:
            return
        with self._lock:
            # Always a new dict: the thread that draws must not wait for this one, which may be stopping it.
            others = {number: step for number, step in self._steps.items() if number != event.number}
            if event.ended:
                self._steps = others
                if not others:
                    self._shown.close()
                return
            idle = not self._steps
            started = self._steps[event.number][1] if event.number in self._steps else time.monotonic()
            self._steps = {**self._steps, event.number: (event, started)}
            if idle:
                self._start()

    def _start(self) -> None:
        import logging

        from rich.console import Console
        from rich.live import Live

        before, width = sys.stderr, os.get_terminal_size(self._terminal.fileno()).columns or None
        live = Live(
            get_renderable=self._table,
            console=Console(file=self._terminal, width=width),
            transient=True,
            refresh_per_second=8,
            redirect_stdout=sys.stdout.isatty(),
        )
        self._shown.enter_context(live)
        for handler in logging.getLogger("nbcompile").handlers:  # what they say goes above the lines
            if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                self._shown.callback(handler.setStream, before)
                handler.setStream(sys.stderr)

    def _table(self) -> "Table":
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_column(no_wrap=True, overflow="ellipsis")
        for _ in range(3):
            table.add_column(no_wrap=True, justify="right")
        now = time.monotonic()
        for step, started in self._steps.values():
            if now - started >= AT_ONCE:
                known = step.total is not None
                table.add_row(
                    Text("  " * (len(step.path) - 1) + printable(step.path[-1])),
                    ProgressBar(step.total, step.done, _BAR) if known else "",
                    f"{step.done}/{step.total}" if known else f"{step.done or ''}",
                    _clock(now - started),
                )
        return table


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
