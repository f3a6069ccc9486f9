"""A graph is proven by running it: a wrong one is refused, and the first layer that differs is named."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from nbcompile.core.errors import PostconditionError
from nbcompile.core.graph.guards import OtherSizesError
from nbcompile.core.tracing.call import Call
from nbcompile.core.tracing.capture import capture
from nbcompile.core.tracing.record import record
from nbcompile.core.tracing.recording import Recording
from nbcompile.core.tracing.replay import UnprovenError, prove, require_same_function
from nbcompile.core.tracing.rig import Rig
from tests.core.tracing.runs import Does, X, recorded

Y = torch.randn(5, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
CALL = Call.positional(1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3).double(), nn.BatchNorm2d(4).double()
        self.scale = nn.Parameter(torch.rand(4, 1, 1).double() + 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y = y * self.scale
        return torch.relu(y) + y.mean()


def prove_at(model: nn.Module, one: Recording, other: Any = None) -> None:
    rig = Rig(model)
    prove(rig, CALL, one, other, partial(record, call=CALL))


def proven(model: nn.Module, one: Recording, other: Tensor | None = None) -> None:
    with torch.no_grad():
        prove_at(model, one, None if other is None else ([other], model.eval()(other)))


def wrong(change: Callable[[fx.Graph], None]) -> UnprovenError:
    model = Net().eval()
    one = recorded(model, X)
    proven(model, one, Y)
    change(one.graph)
    with pytest.raises(UnprovenError) as caught:
        proven(model, one, Y)
    return caught.value


def at(graph: fx.Graph, name: str) -> fx.Node:
    return next(node for node in graph.nodes if node.name == name)


def another_operator(graph: fx.Graph) -> None:
    at(graph, "mul").target = torch.sub


def another_number(graph: fx.Graph) -> None:
    at(graph, "mul").args = (at(graph, "norm"), 2.0)


def another_module(graph: fx.Graph) -> None:
    at(graph, "norm").replace_all_uses_with(at(graph, "conv"))


def a_tiny_error(graph: fx.Graph) -> None:
    """Above what rounding explains in float64, far below what float32 would show."""
    relu = at(graph, "relu")
    with graph.inserting_after(relu):
        made = graph.call_function(torch.mul, (relu, 1 + 1e-9))
    relu.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)


@pytest.mark.parametrize(
    ("change", "name"), [(another_operator, "mul"), (another_number, "mul"), (another_module, "mul")]
)
def test_the_first_node_that_differs_is_named(change: Any, name: str) -> None:
    error = wrong(change)
    assert error.why == (
        "does what is seen by no hook and by none of torch's functions: the graph gives another output, "
        f"first at '{name}'"
    )
    assert str(error) == error.why
    assert error.place.startswith(f"{__file__}:")
    assert error.place.endswith(" in forward")


def test_where_no_node_differs_it_is_what_is_returned() -> None:
    error = wrong(a_tiny_error)
    assert error.why.endswith("the graph gives another output, first at 'add'")

    def swapped(graph: fx.Graph) -> None:
        (output,) = graph.find_nodes(op="output")
        output.args = (at(graph, "relu"),)

    error = wrong(swapped)
    assert error.why.endswith("the graph gives another output, in what it returns")
    assert error.place.startswith(f"{__file__}:")
    assert error.place.endswith(" in forward")


@pytest.mark.parametrize("output", [lambda y: (y, y), lambda y: (), lambda y: y.new_zeros(1)])
def test_another_number_of_tensors_or_shape(output: Any) -> None:
    model = Does(lambda m, x: x * 2)
    one = recorded(model, X)
    one.outputs = output(one.outputs)
    with pytest.raises(UnprovenError, match="the graph gives another output, in what it returns"):
        proven(model, one)


def test_a_graph_that_holds_for_the_example_only() -> None:
    """What is no size to it is a number of the first run."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return x * int(str(x.shape[2]))

    model = Does(forward)
    one = recorded(model, X)
    proven(model, one)
    with pytest.raises(UnprovenError) as caught:
        proven(model, one, Y)
    assert caught.value.why.endswith("the graph gives another output, in what it returns")
    assert "runs.py" in caught.value.place  # where the network's forward is


def test_a_graph_that_does_not_run_on_what_the_network_runs_on() -> None:
    model = Does(lambda m, x: x.reshape(int(str(x.shape[0])), -1))
    one = recorded(model, X)
    with pytest.raises(UnprovenError, match=r"^does what its graph cannot do again \(RuntimeError: shape") as caught:
        proven(model, one, torch.ones(3, 3, 1, 1).double())
    assert "runs.py" in caught.value.place  # of the network, not of what its modules were put in
    assert "While executing" not in caught.value.why


def test_a_graph_that_says_that_it_is_not_for_other_sizes_need_not_be_right_for_them() -> None:
    def same_calls_both_ways(m: Any, x: Tensor) -> Tensor:
        if x.shape[2] > 6:
            return x * m.weight
        return x * m.weight

    model = Does(same_calls_both_ways)
    gm = capture(model, (X,))
    assert torch.equal(gm(X), model(X))
    with pytest.raises(OtherSizesError, match=r"test_replay\.py:\d+ in same_calls_both_ways: the network chooses"):
        gm(Y)


def test_tensors_that_hide_from_torch() -> None:
    """Memory that numpy shares is written without torch: no version tells, only the values."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = x * 2
        with torch._C.DisableTorchFunction():
            y.add_(1)
        return y * 3

    one = recorded(Does(forward), X)
    with pytest.raises(UnprovenError, match="the graph gives another output, first at 'mul'"):
        proven(Does(forward), one)


def test_what_a_later_node_wrote_is_no_difference() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = x * 2
        part = y[:, 1]
        y.add_(1)
        z = y.relu() + part.mean()
        with torch._C.DisableTorchFunction():
            z.add_(1)
        return z / 3

    model = Does(forward)
    with pytest.raises(UnprovenError, match="the graph gives another output, first at 'add'"):
        proven(model, recorded(model, X))


class Counts(nn.Module):
    """Gives more with every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.grid = 0, None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Caches(Counts):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.grid is None:
            self.grid = torch.linspace(0, 1, 5).double()
        return x + self.grid


def test_what_is_kept_from_call_to_call_is_named() -> None:
    model = nn.Sequential(nn.ReLU(), Counts())
    one = recorded(model, X)
    with pytest.raises(UnprovenError) as caught:
        proven(model, one)
    assert (
        caught.value.why == "gives another output when it is called again, because it keeps '1.calls' from call to call"
    )
    assert caught.value.place.startswith(f"{__file__}:")
    assert model[1].calls == 0
    root = Counts()
    with pytest.raises(UnprovenError, match="because it keeps 'calls' from call to call"):
        proven(root, recorded(root, X))


def test_what_is_kept_and_changes_no_output_is_let_be() -> None:
    model = Caches()
    one = recorded(model, X)
    prove_at(model, one)
    assert (model.calls, model.grid) == (0, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.int64, torch.bool])
def test_outputs_of_every_dtype(dtype: torch.dtype) -> None:
    model = Does(lambda m, x: (x.real if x.is_complex() else x).to(dtype))
    one = recorded(model, X)
    proven(model, one)
    one.outputs = one.outputs.logical_not() if dtype is torch.bool else one.outputs + 1
    with pytest.raises(UnprovenError, match="another output"):
        proven(model, one)


def test_not_a_number_is_equal_to_itself() -> None:
    model = Does(lambda m, x: torch.log(-x.abs()))
    proven(model, recorded(model, X), Y)


def test_model_inputs_and_generator_are_left_alone() -> None:
    model, random, x = Net().train(), torch.get_rng_state(), X.clone()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    one = recorded(model, x)
    prove_at(model, one)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(x, X)
    assert all(m.training for m in model.modules())


def test_a_network_that_writes_into_its_input_leaves_those_it_is_proven_on() -> None:
    model, x = Does(lambda m, x: x.add_(1) * 2), X.clone()
    one = recorded(model, x)
    prove_at(model, one, (list(map(Tensor.clone, [x])), one.outputs))
    assert torch.equal(x, X)


@pytest.mark.parametrize("change", ["another value", "does not run"])
def test_a_graph_that_was_rewritten_otherwise_than_its_model(change: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU()).double().eval()
    x = torch.randn(2, 3, dtype=torch.float64)
    gm = capture(model, (x,))
    require_same_function(model, model(x), gm, (x,))
    (node,) = gm.graph.find_nodes(op="call_module", target="1")
    with gm.graph.inserting_after(node):
        new = gm.graph.call_function(
            *((torch.neg, (node,)) if change == "another value" else (torch.bmm, (node, node)))
        )
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    with pytest.raises(PostconditionError, match=r"^the graph of this Sequential gives another output"):
        require_same_function(model, model(x), gm, (x,))
