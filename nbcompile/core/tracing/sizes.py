"""Sizes of tensors that know where they come from: whole numbers to Python, nodes to the graph that is recorded."""

import math
import operator
from collections.abc import Callable
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
        return plain(self)

    def __reduce__(self) -> Any:
        return int, (plain(self),)


class TracedFloat(float):
    """The quotient of sizes, and what is computed of it."""

    node: fx.Node
    writer: Writer

    def __deepcopy__(self, _: Any) -> float:
        return plain(self)

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


for _cls in (TracedInt, TracedFloat):
    for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
        setattr(_cls, f"__{_name}__", _computed(getattr(operator, _name)))
        setattr(_cls, f"__r{_name}__", _computed(getattr(operator, _name), swapped=True))
    for _name in ("neg", "abs"):
        setattr(_cls, f"__{_name}__", _computed(getattr(operator, _name)))
    for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(_cls, f"__{_name}__", _asked(getattr(operator, _name)))
    for _function in (math.ceil, math.floor, math.trunc, round):
        setattr(_cls, f"__{_function.__name__}__", _computed(_function))
    _cls.__bool__ = _asked(operator.truth)
    _cls.__hash__ = lambda self: hash(plain(self))
    _cls.__divmod__ = lambda self, other: (self // other, self % other)
    _cls.__rdivmod__ = lambda self, other: (other // self, other % self)
