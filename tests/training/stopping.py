"""A run that stops in the middle, as if it had been killed."""

from collections.abc import Callable

from nbcompile.training import Epoch, Event


class StopError(Exception):
    """What ends it."""


def stop_after(epoch: int) -> Callable[[Event], None]:
    """A listener that ends the run when ``epoch``, counted from 1, is done."""

    def listener(event: Event) -> None:
        if isinstance(event, Epoch) and event.epoch == epoch:
            raise StopError

    return listener
