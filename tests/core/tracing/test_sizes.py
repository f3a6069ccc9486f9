"""Numbers that know where they come from: plain to Python, nodes to who records."""

import copy
import math
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from torch import fx

from nbcompile.core.tracing.sizes import TracedFloat, TracedInt, is_traced, plain


class Written:
    """Keeps what it is told, and gives traced numbers."""

    def __init__(self) -> None:
        self.numbers: list[tuple[Any, ...]] = []
        self.comparisons: list[tuple[Any, ...]] = []
        self.graph = fx.Graph()

    def number(self, value: Any, function: Callable[..., Any], *operands: Any) -> Any:
        self.numbers.append((function, operands))
        return self.traced(value)

    def compared(self, outcome: bool, function: Callable[..., Any], *operands: Any) -> None:
        self.comparisons.append((outcome, function, operands))

    def traced(self, value: Any) -> Any:
        if type(value) not in (int, float):
            return value
        number: Any = TracedInt(value) if type(value) is int else TracedFloat(value)
        number.node, number.writer = self.graph.placeholder("x"), self
        return number


ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")


@pytest.mark.parametrize("value", [7, 2.5])
@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_is_written_with_its_operands_in_order(name: str, value: float) -> None:
    function, writer = getattr(operator, name), Written()
    x = writer.traced(value)
    for operands in ((x, 3), (2 if type(value) is int else 2.5, x), (x, x), (x, 1.5)):
        result = function(*operands)
        assert is_traced(result)
        assert plain(result) == function(*map(plain, operands))
        assert type(plain(result)) is type(function(*map(plain, operands)))
        written, seen = writer.numbers.pop()
        assert written is function
        assert all(a is b for a, b in zip(seen, operands, strict=True))
    assert writer.numbers == []


def test_a_fraction_times_a_whole_number_is_pythons_own() -> None:
    """It asks the fraction first, which knows whole numbers: two runs at other sizes have to show the difference."""
    writer = Written()
    assert not is_traced(1.5 * writer.traced(7))
    assert is_traced(writer.traced(7) * 1.5)
    assert len(writer.numbers) == 1


@pytest.mark.parametrize("value", [-7, -2.5, 2.5])
@pytest.mark.parametrize("function", [operator.neg, abs, math.ceil, math.floor, math.trunc, round])
def test_of_one_number(function: Callable[..., Any], value: float) -> None:
    writer = Written()
    result = function(writer.traced(value))
    assert is_traced(result)
    assert plain(result) == function(value)
    assert type(plain(result)) is type(function(value))
    assert len(writer.numbers) == 1
    assert writer.numbers[0][0](value) == function(value)


def test_rounding_to_digits() -> None:
    writer = Written()
    x = writer.traced(2.3456)
    assert plain(round(x, 2)) == 2.35
    assert writer.numbers == [(round, (x, 2))]


def test_divmod_is_quotient_and_remainder() -> None:
    writer = Written()
    x = writer.traced(17)
    assert [*map(plain, (*divmod(x, 5), *divmod(100, x)))] == [3, 2, 5, 15]
    assert [(function, *map(plain, operands)) for function, operands in writer.numbers] == [
        (operator.floordiv, 17, 5),
        (operator.mod, 17, 5),
        (operator.floordiv, 100, 17),
        (operator.mod, 100, 17),
    ]


@pytest.mark.parametrize("name", ["lt", "le", "gt", "ge", "eq", "ne"])
@pytest.mark.parametrize("value", [7, 7.0])
def test_comparisons_are_told_with_their_outcome(name: str, value: float) -> None:
    function, writer = getattr(operator, name), Written()
    x = writer.traced(value)
    for other in (6, 7, 8.5):
        outcome = function(x, other)
        assert outcome is function(value, other)
        assert writer.comparisons.pop() == (outcome, function, (x, other))
        writer.comparisons.clear()  # what the line above compared


def test_truth_is_a_comparison() -> None:
    writer = Written()
    x, zero = writer.traced(7), writer.traced(0)
    assert bool(x) is True
    assert bool(zero) is False
    assert [(outcome, function) for outcome, function, _ in writer.comparisons] == [
        (True, operator.truth),
        (False, operator.truth),
    ]


def test_min_and_max_are_comparisons() -> None:
    writer = Written()
    assert plain(max(writer.traced(7), 3)) == 7
    assert len(writer.comparisons) == 1


@pytest.mark.parametrize("value", [7, 2.5])
def test_hashes_as_the_number_and_is_found_in_tables(value: float) -> None:
    x = Written().traced(value)
    assert hash(x) == hash(value)
    assert {value: "found"}[x] == "found"
    assert x in {value}


def test_is_an_index_and_a_bound_of_loops() -> None:
    x = Written().traced(3)
    assert list("abcde")[x] == "d"
    assert list("abcde")[:x] == ["a", "b", "c"]
    assert list(range(x)) == [0, 1, 2]
    assert not any(map(is_traced, range(x)))
    assert [0] * x == [0, 0, 0]
    assert f"{x} {x:03d}" == "3 003"


def test_whatever_is_no_number_is_left_to_the_other() -> None:
    x = Written().traced(3)
    with pytest.raises(TypeError, match="unsupported operand"):
        x - "a"
    assert (x == "a", x != None) == (False, True)  # noqa: E711
    assert "ab" * x == "ababab"


@pytest.mark.parametrize("value", [7, 2.5])
@pytest.mark.parametrize("how", [copy.deepcopy, copy.copy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_plain(how: Callable[[Any], Any], value: float) -> None:
    """A copy of the network, or a file of it, must hold no graph."""
    made = how({"size": Written().traced(value)})
    kept = how(Written().traced(value))
    assert type(kept) is type(value)
    assert kept == value
    if how is not copy.copy:  # it is shallow
        assert type(made["size"]) is type(value)


def test_plain_and_traced() -> None:
    writer = Written()
    assert is_traced(writer.traced(1))
    assert is_traced(writer.traced(1.0))
    assert not is_traced(1)
    assert type(plain(writer.traced(7))) is int
    assert type(plain(writer.traced(2.5))) is float
    assert plain("a") == "a"
    assert plain(True) is True
    assert isinstance(writer.traced(7), int)
    assert isinstance(writer.traced(7.5), float)
