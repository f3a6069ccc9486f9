"""What the files that one export tries have in common, computed once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

Asked = ParamSpec("Asked")
Found = TypeVar("Found")

_found: ContextVar[dict[Any, Any] | None] = ContextVar("nbcompile_found_once", default=None)


@contextmanager
def one_export() -> Iterator[None]:
    """Inside the block nobody changes what functions that run `once` are given."""
    before = _found.set({})
    try:
        yield
    finally:
        _found.reset(before)


def once(find: Callable[Asked, Found]) -> Callable[Asked, Found]:
    """``find``, which inside `one_export` is asked once for the same arguments: the very objects, not equal ones."""

    @wraps(find)
    def remembering(*args: Asked.args, **kwargs: Asked.kwargs) -> Found:
        known = _found.get()
        if known is None:
            return find(*args, **kwargs)
        key = (find, *map(id, args), *((name, id(kwargs[name])) for name in sorted(kwargs)))
        if key not in known:
            known[key] = find(*args, **kwargs), args, kwargs  # as long as these are held, nobody else has their ids
        found: Found = known[key][0]
        return found

    return remembering
