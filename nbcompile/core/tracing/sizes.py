"""Sizes of tensors that know where they come from: whole numbers to Python, nodes to the graph that is recorded."""

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import fx


class Writer(Protocol):
    """Who writes numbers into a graph."""

    def number(self, value: Any, function: Callable[..., Any], *operands: Any) -> Any:
        """``value``, which ``function`` computed of ``operands``, some of which are traced."""

    def compared(self, outcome: bool, function: Callable[..., Any], *operands: Any) -> None:
        """Python asked how ``operands`` compare, some of which are traced, and went on by what it was told."""


class TracedInt(int):
    """A size, or what was computed of sizes. All that Python does with it but arithmetic sees a plain number."""

    node: fx.Node
    writer: Writer

    def __deepcopy__(self, _: Any) -> int:
        return int.__int__(self)

    def __reduce__(self) -> Any:
        return int, (plain(self),)


class TracedFloat(float):
    """The quotient of sizes, and what is computed of it."""

    node: fx.Node
    writer: Writer

    def __deepcopy__(self, _: Any) -> float:
        return float.__float__(self)

    def __reduce__(self) -> Any:
        return float, (plain(self),)


def plain(value: Any) -> Any:
    """A number without its past."""
    if isinstance(value, TracedInt):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, TracedFloat) else value


def is_traced(value: Any) -> bool:
    """Whether ``value`` has a node."""
    return isinstance(value, (TracedInt, TracedFloat))


def _computed(function: Callable[..., Any], swapped: bool = False) -> Callable[..., Any]:
    def method(self: Any, *others: Any) -> Any:
        if not all(isinstance(x, (int, float)) for x in others):
            return NotImplemented
        operands = (*others, self) if swapped else (self, *others)
        return self.writer.number(function(*map(plain, operands)), function, *operands)

    return method


def _asked(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *others: Any) -> Any:
        if not all(isinstance(x, (int, float)) for x in others):
            return NotImplemented
        outcome = function(*map(plain, (self, *others)))
        self.writer.compared(outcome, function, self, *others)
        return outcome

    return method


def _methods() -> Iterator[tuple[str, Any]]:
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
        yield f"__{name}__", _computed(getattr(operator, name))
        yield f"__r{name}__", _computed(getattr(operator, name), swapped=True)
    for name in ("neg", "abs"):
        yield f"__{name}__", _computed(getattr(operator, name))
    for name in ("lt", "le", "gt", "ge", "eq", "ne"):
        yield f"__{name}__", _asked(getattr(operator, name))
    for function in (math.ceil, math.floor, math.trunc, round):
        yield f"__{function.__name__}__", _computed(function)
    yield "__bool__", _asked(operator.truth)
    yield "__hash__", lambda self: hash(plain(self))
    yield "__divmod__", lambda self, other: (self // other, self % other)
    yield "__rdivmod__", lambda self, other: (other // self, other % self)


for _cls in (TracedInt, TracedFloat):
    for _name, _method in _methods():
        setattr(_cls, _name, _method)
