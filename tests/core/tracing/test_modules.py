"""Which modules hold which, what they are given, and what they keep."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.tracing.modules import can_be_taken_apart, containers, contents, keeps, state
from nbcompile.core.tracing.rig import holders
from tests.core.tracing.runs import Does, X, recorded


class PassedBy(nn.Module):
    """The children of ``block`` are called without it; ``other`` is another name of a child of ``whole``."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.ReLU()).double()
        self.whole = nn.Sequential(nn.Linear(5, 5), nn.ReLU()).double()
        self.free = nn.Sequential(nn.ReLU(), nn.Linear(5, 5).double())
        self.other = self.whole[0]

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(self.block[1](x))
        return self.free[0](self.free(self.other(self.whole(y))))  # type: ignore[no-any-return]


def test_modules_whose_inner_modules_are_called_without_them() -> None:
    assert recorded(PassedBy(), X).passed_by == {"block", "whole"}  # an activation of a part is nobody's


@pytest.mark.parametrize(
    ("argument", "value", "why"),
    [
        (lambda: object(), None, "is given what no graph can hold"),
        (lambda: None, lambda x: {x}, "returns what no graph can hold"),
        (lambda: None, lambda x: x.shape[0] + 1, "returns what no graph can hold"),
        (lambda: None, lambda x: [x, True], "returns what no graph can hold"),
        (lambda: None, lambda x: {"a": "b"}, "returns what no graph can hold"),
    ],
)
def test_an_opaque_part_that_is_given_or_returns_objects(argument: Any, value: Any, why: str) -> None:
    def part(m: Any, x: Tensor, given: Any) -> Any:
        return x if value is None else value(x)

    def around(m: Any, x: Tensor) -> Tensor:
        y = m.parts[0](x, argument())
        return x * 2 if not isinstance(y, Tensor) else y

    one = recorded(Does(around, Does(part)), X, opaque=("parts.0",))
    assert one.refusal is not None
    assert one.refusal.why == f"calls 'parts.0', which {why}"


def test_a_part_that_is_forced_to_be_one_and_changes_what_it_is_given() -> None:
    def change(m: Any, xs: list[Tensor]) -> Tensor:
        return xs.pop()

    def around(m: Any, x: Tensor) -> Any:
        xs = [x * 2, x * 3]
        return m.parts[0](xs) + sum(xs)

    one = recorded(Does(around, Does(change)), X, opaque=("parts.0",))
    assert one.refusal is not None
    assert one.refusal.why == "calls 'parts.0', which changes what it is given"
    assert one.refusal.place.endswith(" in around")


def test_the_networks_own_inputs_must_stay() -> None:
    one = recorded(Does(lambda m, xs: xs.pop() + 1), [X, X])
    assert one.refusal is not None
    assert one.refusal.why == "changes a list or dict that it is given"


def test_a_flag_that_is_kept_by_what_is_not_shown() -> None:
    """Other code goes by it: in the graph of one run it would be as it was then."""

    def keeps(m: Any, x: Tensor) -> Tensor:
        m.parts[0].flag = bool(x.sum() > 0)
        return x * 2

    def around(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.parts[0](x)
        return y if m.parts[0].parts[0].flag else -y

    one = recorded(Does(around, Does(keeps, nn.ReLU())), X, opaque=("parts.0",))
    assert one.refusal is not None
    assert one.refusal.why == "calls 'parts.0', which keeps 'parts.0.flag', by which other code may choose its way"
    assert one.refusal.place.endswith(" in around")


def test_a_tensor_that_is_kept_by_what_is_not_shown_is_no_flag() -> None:
    def keeps(m: Any, x: Tensor) -> Tensor:
        m.kept = x * 2
        return x if x.sum() > 0 else x + m.kept

    assert recorded(nn.Sequential(Does(keeps)), X, opaque=("0",)).refusal is None


def test_all_around_a_module_are_passed_by() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.outer = nn.Sequential(nn.Sequential(nn.Linear(5, 5).double(), nn.ReLU()))

        def forward(self, x: Tensor) -> Tensor:
            return self.outer[0][0](x)  # type: ignore[no-any-return]

    model = Deep()
    assert holders(model)[model.outer[0][0]] == {"outer", "outer.0"}
    assert holders(model)[model.outer[0]] == {"outer"}
    assert holders(model)[model.outer[0][1]] == set()  # an activation is nobody's
    assert recorded(model, X).passed_by == {"outer", "outer.0"}


def test_a_tensor_from_a_part_that_was_not_understood_is_no_constant() -> None:
    """Also where only the part around it is one node."""

    def inner(m: Any, x: Tensor) -> Any:
        return {x * 2}

    def middle(m: Any, x: Tensor) -> Tensor:
        (m.kept,) = m.parts[0](x)
        return x * 1

    def outer(m: Any, x: Tensor) -> Tensor:
        return m.parts[0](x) + m.parts[0].kept  # type: ignore[no-any-return]

    one = recorded(Does(outer, Does(middle, Does(inner))), X, opaque=("parts.0.parts.0",))
    assert one.refusal is not None
    assert one.refusal.why == "uses a tensor that was made by code which the graph does not show"
    assert one.constants == {}


def test_contents_tell_of_a_change_and_containers_of_those_alone() -> None:
    x = torch.ones(2)
    value: Any = {"a": [x, 1], "b": (x,)}
    inside, around = contents(value), containers(value)
    x.add_(1)
    assert contents(value) != inside
    assert containers(value) == around
    value["a"].pop()
    assert containers(value) != around


@pytest.mark.parametrize(
    ("value", "can"),
    [
        (X, True),
        (None, True),
        ([X, (X, None)], True),
        ({"a": X}, True),
        (3, False),
        ([X, 3], False),
        ("a", False),
        ({X}, False),
        (type("Own", (dict,), {})(a=X), False),
    ],
)
def test_what_a_graph_can_take_apart(value: Any, can: bool) -> None:
    assert can_be_taken_apart(value) is can


def test_keeps_names_the_first_that_is_no_tensor() -> None:
    model: Any = nn.Sequential(nn.ReLU())
    before = state(model)
    model[0].kept = X
    assert keeps(model, before) == ""
    model[0].flag = True
    assert keeps(model, before) == "0.flag"
    model.listed = [1]
    assert keeps(model, before) == "listed"
