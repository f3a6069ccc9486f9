"""What torch can do in one thread at a time only."""

from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Made = TypeVar("Made")

_LOCK = RLock()


def one_at_a_time(export: Callable[Given, Made]) -> Callable[Given, Made]:
    """``export``, while no other such function runs: ``torch.export`` keeps its state for the whole process."""

    @wraps(export)
    def alone(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        with _LOCK:
            return export(*args, **kwargs)

    return alone
