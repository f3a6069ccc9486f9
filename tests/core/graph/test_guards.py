"""What a graph checks when it runs: the sizes, the choices and the number of its inputs."""

import operator
import re
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from nbcompile.core.errors import PreconditionError
from nbcompile.core.graph.guards import CheckedGraph, require_same_choice, require_sizes

X = torch.randn(2, 3, 7, 5)


def sizes_graph() -> fx.Graph:
    """Nobody reads what the checks give."""
    graph = fx.Graph()
    x, scale = graph.placeholder("x"), graph.placeholder("scale")
    graph.call_function(require_sizes, (x, "x", (3, 7, 5)))
    asked = graph.call_function(operator.gt, (graph.call_method("size", (x, 0)), 1))
    graph.call_function(require_same_choice, (asked, True, "net.py:7 in forward"))
    graph.output(graph.call_function(operator.mul, (x, scale)))
    return graph


class Net(nn.Module):
    """Gives its name to graphs of it."""


def checked() -> CheckedGraph:
    return CheckedGraph(Net(), sizes_graph(), "Net")


def test_inputs_as_in_the_example_pass() -> None:
    gm = checked()
    assert torch.equal(gm(X, 2), X * 2)
    assert torch.equal(gm(X, scale=2), X * 2)
    many = torch.randn(5, 3, 7, 5)
    assert torch.equal(gm(many, 2), many * 2)


@pytest.mark.parametrize("shape", [(2, 3, 7, 6), (2, 3, 7), (2, 1, 3, 7, 5), (2,)])
def test_other_sizes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PreconditionError) as caught:
        checked()(torch.zeros(shape), 2)
    assert str(caught.value) == (
        f"'x' has the sizes {shape[1:]} behind its batch, but the graph holds for (3, 7, 5) only: the network chooses "
        "its way by them, or computes with them in a way that could not be followed; make it again with an example "
        "input of the sizes that you want"
    )


def test_of_some_sizes_any_will_do() -> None:
    require_sizes(torch.ones(2, 3, 9), "x", (3, None))
    with pytest.raises(
        PreconditionError,
        match=re.escape("'x' has the sizes (4, 9) behind its batch, but the graph holds for (3, any) only"),
    ):
        require_sizes(torch.ones(2, 4, 9), "x", (3, None))
    with pytest.raises(PreconditionError, match=re.escape("holds for (3, any) only")):
        require_sizes(torch.ones(2, 3), "x", (3, None))


def test_another_choice_is_refused() -> None:
    with pytest.raises(PreconditionError) as caught:
        checked()(X[:1], 2)
    assert str(caught.value) == (
        "net.py:7 in forward: the network chooses its way by the sizes of its input, and for these it is another than "
        "the graph's; make it again with an example input of the sizes that you want"
    )
    require_same_choice(0, False, "")
    require_same_choice(torch.tensor(True), True, "")
    with pytest.raises(PreconditionError, match=re.escape("a.py:1 in f: the network chooses its way")):
        require_same_choice(torch.tensor(False), True, "a.py:1 in f")


@pytest.mark.parametrize(
    ("args", "kwargs", "more"),
    [((X, 1, 2), {}, "input 3"), ((X,), {"mask": X}, "mask"), ((X, 1, 2, 3), {"mask": None}, "mask")],
)
def test_more_than_its_inputs_is_refused_by_name(args: tuple[Any, ...], kwargs: dict[str, Any], more: str) -> None:
    with pytest.raises(PreconditionError) as caught:
        checked()(*args, **kwargs)
    assert str(caught.value) == (
        f"the graph of this Net takes x, scale, as in the example that it was made with, and no {more}: all else is as "
        f"it was then; make it again with an example with {more}"
    )


def test_checks_are_not_swept_away() -> None:
    gm = checked()
    gm.graph.eliminate_dead_code()
    gm.recompile()
    with pytest.raises(PreconditionError, match="has the sizes"):
        gm(X[:, :1], 2)


def test_without_an_example_input_missing_is_pythons_to_say() -> None:
    with pytest.raises(TypeError, match="scale"):
        checked()(X)


def test_a_check_changes_no_input() -> None:
    x: Tensor = X.clone()
    checked()(x, 2)
    assert torch.equal(x, X)
