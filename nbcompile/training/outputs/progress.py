"""Shows a run on stderr: bars on a terminal, one line per epoch elsewhere."""

from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from nbcompile.core.words import printable
from nbcompile.training.outputs.records import Epoch, Event, Started, Stepped, TrainResult


class Display:
    """A listener for ``train(on_event=...)``; a context manager, so that the terminal is given back.

    Args:
        console: where to write; None is stderr.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._epochs = 0
        self._metric = "accuracy"

    def __enter__(self) -> "Display":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Started):
            self._started(event)
        elif isinstance(event, Stepped):
            self._stepped(event)
        elif isinstance(event, Epoch):
            left = timedelta(seconds=round(event.seconds * (self._epochs - event.epoch)))
            self._line(f"epoch {event.epoch}/{self._epochs}  {_numbers(event, self._metric)}  left {left}")
        elif isinstance(event, TrainResult):
            self._bars.stop()

    def _started(self, event: Started) -> None:
        self._epochs, self._metric = event.epochs, event.metric
        if event.resume_found_nothing:
            self._line(f"no checkpoint in {event.run_dir}: starting from the beginning")
        if event.done:
            self._line(f"resuming {event.run_dir} after epoch {event.done} of {event.epochs}")
        if event.note:
            self._line(f"{event.data}: {event.note}")
        paid = "" if event.macs is None else f", as many as {event.macs:.6g} training MACs pay for"
        self._line(f"{event.method} on {event.data}: {event.epochs} epochs of {event.steps_per_epoch} steps{paid}")
        self._bars.start()
        self._task = self._bars.add_task(
            event.method,
            total=event.epochs * event.steps_per_epoch,
            completed=event.done * event.steps_per_epoch,
            numbers="",
        )

    def _stepped(self, event: Stepped) -> None:
        if self._task is not None:
            found = self._metric if self._metric == "accuracy" else "found"
            self._bars.update(
                self._task,
                completed=event.step,
                description=f"{event.phase} {event.epoch}/{self._epochs}",
                numbers=f"loss {event.loss:.3f}  {found} {event.accuracy:.1%}{_slope(event.slope)}",
            )

    def _line(self, text: str) -> None:
        # soft_wrap: a log line is one line, however narrow the pipe claims to be.
        self.console.print(Text(printable(text)), soft_wrap=True)


def _numbers(epoch: Epoch, metric: str) -> str:
    val = "val" if metric == "accuracy" else metric
    return (
        f"{epoch.phase}  loss {epoch.loss:.3f}  train {epoch.train_accuracy:.1%}  {val} {epoch.val_accuracy:.1%}"
        f"{_slope(epoch.slope)}  lr {epoch.lr:.2g}  {epoch.seconds:.1f} s"
    )


def _slope(slope: float | None) -> str:
    return "" if slope is None else f"  slope {slope:.2f}"
