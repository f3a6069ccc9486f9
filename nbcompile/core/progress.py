"""What is being done, for whoever wants to show it; unless somebody listens, nothing is shown and nothing is kept.

    with step("calibrating", total=len(samples)) as advance:
        for sample in samples:
            run(sample)
            advance()

Everything that may take seconds is such a step. To see them:

    with listening(lambda event: print(" > ".join(event.path), event.done, event.total)):
        nbcompile.export(tiny, "tiny.onnx")

Who listens, and what is being done around a step, is kept per context: other threads are silent, unless they are given
a copy of it (`contextvars.copy_context`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import count
from threading import Lock


@dataclass(frozen=True)
class StepEvent:
    """A step of the work, at one moment: when it begins, whenever a part of it is done, and when it ends.

    Attributes:
        path: what is being done, from the whole to the part: ``("writing tiny.onnx", "simplifying")``.
        number: of the step, in this process: no other step has it.
        done: parts of it that are done.
        total: its parts; None where nobody knows.
        ended: whether it has ended, well or not.
    """

    path: tuple[str, ...]
    number: int
    done: int = 0
    total: int | None = None
    ended: bool = False


StepListener = Callable[[StepEvent], None]
"""Called in the thread that works: it should be quick, and what it raises stops the work."""

_listener: ContextVar[StepListener | None] = ContextVar("nbcompile_listener", default=None)
_path: ContextVar[tuple[str, ...]] = ContextVar("nbcompile_path", default=())
_numbers = count(1)


@contextmanager
def listening(listener: StepListener | None) -> Iterator[None]:
    """Inside the block, ``listener`` is told of every step that begins there, and nobody else is; None: nobody."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


@contextmanager
def step(name: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """A step of the work; a block, and never inside a generator, whose end may come late or never.

    Args:
        name: what is being done, for people: ``calibrating``.
        total: parts that it has, if they can be counted.

    Yields:
        To be called whenever a part is done; from any thread.
    """
    listener = _listener.get()
    if listener is None:
        yield lambda: None
        return
    outer = _path.get()
    event, lock = StepEvent((*outer, name), next(_numbers), total=total), Lock()

    def advance() -> None:
        nonlocal event
        with lock:
            event = replace(event, done=event.done + 1)
            listener(event)

    _path.set(event.path)
    try:
        listener(event)
        yield advance
    finally:
        _path.set(outer)
        listener(replace(event, ended=True))
