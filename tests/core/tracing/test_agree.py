"""Two runs agree where all that differs follows from the inputs; else it is said what differs, and where."""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.tracing.agree import Comparison, DisagreementError, settle
from nbcompile.core.tracing.recording import Recording
from nbcompile.core.tracing.values import NUMBER
from tests.core.tracing.runs import Does, X, recorded, run

Y = torch.randn(5, 3, 14, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def both(what: Callable[..., Any], x: Any = X, y: Any = Y) -> tuple[nn.Module, Recording, Recording]:
    model = Does(what).eval()
    return model, recorded(model, x), recorded(model, y, sizes=False)


def plain(number: Any) -> int:
    """As code sees a size that computes with it in a way that is no arithmetic."""
    return int(str(number))


def calls_more(m: Any, x: Tensor) -> Tensor:
    for _ in range(x.shape[0]):
        x = x.relu()
    return x


@pytest.mark.parametrize(
    ("what", "why", "function"),
    [
        (
            lambda m, x: x.relu() if plain(x.shape[2]) == 7 else x.sigmoid(),
            "calls relu for one input and sigmoid for another",
            "<lambda>",
        ),
        (
            lambda m, x: x.relu() if plain(x.shape[2]) == 7 else torch.relu(x),
            "calls relu for one input and relu for another",
            "<lambda>",
        ),
        (lambda m, x: x * plain(x.shape[2]), "gives mul the number 7 for one input and 14 for another", "<lambda>"),
        (
            lambda m, x: x[: plain(x.shape[2])],
            "gives getitem the number 7 for one input and 14 for another",
            "<lambda>",
        ),
        (
            lambda m, x: x.mean([2, 3] if plain(x.shape[2]) == 7 else [1, 2]),
            "gives mean the number 2 for one input and 1 for another",
            "<lambda>",
        ),
        (
            lambda m, x: x.mean([3] if plain(x.shape[2]) == 7 else [1, 2]),
            "gives mean the number [3] for one input and [1, 2] for another",
            "<lambda>",
        ),
        (
            lambda m, x: torch.sum(x, dim=1, keepdim=plain(x.shape[2]) == 7),
            "gives sum the number True for one input and False for another",
            "<lambda>",
        ),
        (
            lambda m, x: x * (float("nan") if plain(x.shape[2]) == 7 else 2.0),
            "gives mul the number nan for one input and 2.0 for another",
            "<lambda>",
        ),
        (
            lambda m, x: x.new_zeros(x.shape[2] if plain(x.shape[2]) == 7 else x.shape[3]),
            "gives new_zeros another value for another input",
            "<lambda>",
        ),
        (
            lambda m, x: [x * 2, x * 3][plain(x.shape[2]) % 2] + 1,
            "gives add another value for another input",
            "<lambda>",
        ),
        (calls_more, "makes another number of calls for another input", "calls_more"),
        (
            lambda m, x: x + torch.from_numpy(np.full(1, float(plain(x.shape[2])))),
            "uses a tensor that torch did not make, and that depends on the input",
            "<lambda>",
        ),
    ],
)
def test_what_differs_and_where(what: Callable[..., Any], why: str, function: str) -> None:
    _, one, other = both(what)
    with pytest.raises(DisagreementError) as caught:
        Comparison(one, other)
    assert (str(caught.value), caught.value.why) == (why, why)
    assert caught.value.inside == ""
    assert caught.value.place.startswith(f"{__file__}:")
    assert caught.value.place.endswith(f" in {function}")


def test_the_module_in_which_runs_differ() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Sequential(Does(lambda m, x: x * plain(x.shape[3]))))
    with pytest.raises(DisagreementError) as caught:
        Comparison(recorded(model, X), recorded(model, Y, sizes=False))
    assert caught.value.inside == "1.0"


def test_sizes_follow_from_the_inputs() -> None:
    def what(m: Any, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = x.reshape(b, c, h * w)[:, :, h // 2 : -w] * (x.numel() / b) + m.weight.shape[0]
        return y.sum((2,), keepdim=True).expand(b, c, h) + x.new_full((h,), 2.5 * 2)

    model, one, other = both(what)
    agreed = Comparison(one, other)
    assert not agreed.guessed
    values = [(node.meta[NUMBER], agreed.value(node)) for node in one.graph.nodes if NUMBER in node.meta]
    assert {(2, 5), (3, 3), (7, 14), (5, 10), (35, 140), (210, 2100)} <= set(values)
    with torch.no_grad():
        for x in (X, Y, X[:1, :, :3]):
            assert torch.equal(run(model, one, x), model(x))


def grows(m: Any, x: Tensor) -> Tensor:
    n = len(x)  # what Python counts is no size to a graph
    return torch.cat([x.view(n * 3, 1, -1), x.new_zeros(size=(n, 1, x[0, 0].numel()))])[: 2 * n]


def test_numbers_that_grow_with_the_batch_become_nodes() -> None:
    model, one, other = both(grows)
    agreed = Comparison(one, other)
    assert agreed.guessed
    added = [node for node in one.graph.find_nodes(op="call_function", target=operator.mul) if NUMBER in node.meta]
    assert sorted((node.args[1], node.meta[NUMBER], agreed.value(node)) for node in added) == [
        (1, 2, 5),
        (2, 4, 10),
        (3, 6, 15),
    ]
    with torch.no_grad():
        for batch in (1, 2, 5, 7):
            x = torch.randn(batch, 3, 7, 5, dtype=torch.float64)
            assert torch.equal(run(model, one, x), model(x))


def test_without_a_guess_a_number_that_grows_differs() -> None:
    _, one, other = both(grows)
    with pytest.raises(DisagreementError, match=r"^gives view the number 6 for one input and 15 for another$"):
        Comparison(one, other, guess=False)


@pytest.mark.parametrize("number", [lambda n: n + 1, lambda n: n * n, lambda n: n / 2, lambda n: 3 - n])
def test_numbers_that_grow_otherwise_differ(number: Any) -> None:
    _, one, other = both(lambda m, x: x * number(len(x)))
    with pytest.raises(DisagreementError, match=r"^gives mul the number "):
        Comparison(one, other)


def test_what_is_guessed_does_not_change_a_graph_that_disagrees() -> None:
    """Another run may still agree with it."""
    _, one, other = both(lambda m, x: x.view(len(x), -1) * plain(x.shape[3]))
    before = str(one.graph)
    with pytest.raises(DisagreementError):
        Comparison(one, other)
    assert str(one.graph) == before


def test_nan_is_nan() -> None:
    _, one, other = both(lambda m, x: x * float("nan"))
    assert not Comparison(one, other).guessed


def asks(m: Any, x: Tensor) -> Tensor:
    if x.shape[1] == 3 and x.shape[2] > 3:
        x = x + 1
    return x * (2 if x.shape[0] * 2 > 1 else 3)


def test_choices_by_sizes_that_can_be_others_are_open() -> None:
    _, one, other = both(asks)
    agreed = Comparison(one, other)
    assert [agreed.open(choice, True) for choice in one.choices] == [False, True, True]


@pytest.mark.parametrize("varied", [True, False])
def test_sizes_that_are_the_same_for_every_input_become_plain(varied: bool) -> None:
    """Channels of maps are; and of what nobody reads there is nothing."""

    def what(m: Any, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return (x.reshape(b * c, h, -1), c * h * w, m.weight)[0]

    model, one, other = both(what)
    settle(one, Comparison(one, other), varied)
    numbers = [(node.target, node.meta[NUMBER]) for node in one.graph.nodes if NUMBER in node.meta]
    assert numbers == [("size", 2), ("size", 7), (operator.mul, 6)]
    (mul,) = one.graph.find_nodes(op="call_function", target=operator.mul)
    assert mul.args[1] == 3
    with torch.no_grad():
        assert torch.equal(run(model, one, Y), model(Y))


def test_without_other_sizes_those_of_tokens_stay() -> None:
    """Of three dimensions the middle one may be a length: only a run at another says that it is not."""

    x, y = torch.randn(2, 3, 5), torch.randn(4, 3, 5)
    for varied in (True, False):
        model = Does(lambda m, x: x.reshape(-1, x.shape[1]))
        one, other = recorded(model, x), recorded(model, y, sizes=False)
        settle(one, Comparison(one, other), varied)
        assert bool(one.graph.find_nodes(op="call_method", target="size")) is not varied
