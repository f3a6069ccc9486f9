"""Random numbers that are drawn inside, and leave those outside as they were."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import Any

import torch

_one_at_a_time = RLock()


@contextmanager
def forked_rng(devices: Sequence[int] = ()) -> Iterator[None]:
    """As ``torch.random.fork_rng``, for threads that run side by side.

    PyTorch locks the generator while it makes a Python object of its state. If Python collects garbage just then, and
    a tensor is part of that, another thread gets to run; where it wants the generator, too, it waits for it with the
    interpreter in its hands, and nothing goes on any more. So nothing is collected meanwhile.

    Args:
        devices: CUDA devices whose random numbers are kept apart, too.
    """
    forked = torch.random.fork_rng(devices)
    _uncollected(forked.__enter__)
    try:
        yield
    finally:
        _uncollected(forked.__exit__, None, None, None)


def _uncollected(call: Callable[..., object], *args: Any) -> None:
    with _one_at_a_time:
        collects = gc.isenabled()
        gc.disable()
        try:
            call(*args)
        finally:
            if collects:
                gc.enable()
