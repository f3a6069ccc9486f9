"""What a run becomes, and that the model is as it was: weights that forward writes, what it keeps, what it raises."""

import operator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbcompile.core.running import says_that_it_writes
from nbcompile.core.tracing.call import Call
from nbcompile.core.tracing.record import ModelError, record
from nbcompile.core.tracing.rig import Rig
from nbcompile.core.tracing.values import NUMBER
from tests.core.tracing.runs import Does, Net, X, check, recorded, run, written


def test_tensors_of_the_network_are_read_by_their_names() -> None:
    one = check(Net(lambda m, x: x * m.weight + m.table * m.plain + m.table + torch.ones(1)), X)
    reads = [node.target for node in one.graph.find_nodes(op="get_attr")]
    assert reads == ["weight", "table", "plain"]  # the table, which is read twice, once
    assert one.constants == {}  # what torch makes is made in the graph


def test_a_tensor_under_two_names_is_one_node() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.a.weight + x @ self.b.weight.t()

    one = check(Tied(), torch.randn(3, 5))
    assert [node.target for node in one.graph.find_nodes(op="get_attr")] == ["a.weight"]


def test_what_comes_from_elsewhere_is_a_constant() -> None:
    table = torch.from_numpy(np.arange(3.0).reshape(3, 1, 1))
    model = Net(lambda m, x: x + torch.as_tensor(table) + torch.from_numpy(np.ones(1)))
    one = check(model, X)
    assert list(one.constants) == ["_constant0", "_constant1"]
    assert torch.equal(one.constants["_constant0"], table)


def test_sizes_are_numbers_of_their_own() -> None:
    def what(m: Net, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = x.reshape(b, c * h, -1) * (x.size(2) / 2) + x.numel() + len(x) + x.size()[3] ** 2 + x.stride(0)
        y = y[:, : h // 2 + 1].expand(x.size()[0], -1, w)
        return y.view(b, h // 2 + 1, w) + x.dim()

    model = Net(what)
    one = check(model, X)
    numbers = [node for node in one.graph.nodes if NUMBER in node.meta]
    targets = {node.target for node in numbers}
    assert targets >= {"size", "numel", operator.mul, operator.truediv, operator.floordiv, operator.add, operator.pow}
    assert {type(node.meta[NUMBER]) for node in numbers} == {int, float}
    x = torch.randn(5, 3, 9, 4, dtype=torch.float64)
    plain = x.stride(0) - X.stride(0) + len(x) - len(X)  # these two are no sizes to the graph
    assert torch.allclose(run(model, one, x) + plain, what(model, x), rtol=1e-15, atol=0)


def test_sizes_of_parameters_are_plain() -> None:
    def what(m: Net, x: Tensor) -> Tensor:
        return x * m.weight.shape[0] * m.table.numel() + m.conv.weight.size(1)

    one = check(Net(what), X)
    assert not any(NUMBER in node.meta for node in one.graph.nodes)


def test_without_sizes_all_are_plain() -> None:
    one = recorded(Net(lambda m, x: x.view(x.shape[0], -1)), X, sizes=False)
    (view,) = one.graph.find_nodes(op="call_method", target="view")
    assert view.args[1:] == (2, -1)


def test_comparisons_of_sizes_are_choices() -> None:
    def what(m: Net, x: Tensor) -> Tensor:
        if x.shape[2] > 5 and m.weight.shape[0] == 3:
            x = x * 2
        return x if x.shape[0] % 2 else -x

    one = check(Net(what), X)
    assert [(choice.function, choice.outcome, choice.inside) for choice in one.choices] == [
        (operator.gt, True, ""),
        (operator.truth, False, ""),
    ]
    assert [node.meta[NUMBER] for node in one.choices[0].nodes] == [7]
    assert one.choices[0].numbers[1] == 5
    assert __file__ in one.choices[0].place
    assert one.choices[0].place.endswith(" in what")


class Scaling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))

    def forward(self, x: Tensor, factor: Any = 1) -> Tensor:
        return x * self.scale * factor


def test_modules_that_are_no_leaves_are_what_they_do() -> None:
    model = nn.Sequential(Scaling(), nn.Sequential(nn.ReLU(), Scaling()))
    one = check(model, X)
    assert written(one) == [
        ("placeholder", "input"),
        ("get_attr", "0.scale"),
        ("call_function", operator.mul),
        ("call_function", operator.mul),
        ("call_module", "1.0"),
        ("get_attr", "1.1.scale"),
        ("call_function", operator.mul),
        ("call_function", operator.mul),
        ("output", "output"),
    ]
    assert list(one.calls) == ["0", "1", "1.1"], "of leaves nobody asks"
    assert [spec.shape for _, specs in one.calls["1.1"] for spec in specs] == [(2, 3, 7, 5)]
    assert written(recorded(model, X, opaque=("1",)))[-2:] == [("call_module", "1"), ("output", "output")]


def test_where_the_code_is_that_made_a_node() -> None:
    one = check(Net(lambda m, x: torch.relu(x)), X)
    (node,) = one.graph.find_nodes(op="call_function", target=torch.relu)
    assert node.meta["place"].startswith(f"{__file__}:")
    assert node.meta["place"].endswith(" in <lambda>")


def test_outputs_of_every_kind() -> None:
    class Both(dict[str, Tensor]):
        """A mapping by another name."""

    def what(m: Net, x: Tensor) -> Any:
        return {"a": [x, None, 3], "b": (x.shape, x.max(1)), "c": Both(y=-x)}

    model = Net(what).eval()
    got, wanted = run(model, recorded(model, X), X), model(X)
    assert list(got) == ["a", "b", "c"]
    assert got["a"][1:] == [None, 3]
    assert got["b"][0] == wanted["b"][0]
    assert type(got["b"][0]) is torch.Size
    assert type(got["b"][1]) is type(wanted["b"][1])
    assert type(got["c"]) is Both
    assert torch.equal(got["c"]["y"], -X)


def test_the_generator_and_the_modes_are_as_before() -> None:
    model, state = Net(lambda m, x: x + torch.rand(3, 1, 1) * m.training), torch.get_rng_state()
    model.train()
    one = recorded(model, X)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert torch.equal(one.outputs, X)  # in eval mode, without gradients
    assert not one.outputs.requires_grad


@torch.library.custom_op("nbcompile_tests::halve", mutates_args={"x"})
def halve(x: Tensor) -> None:
    """Its name does not say that it writes."""
    x.mul_(0.5)


@pytest.mark.parametrize(
    "write",
    [
        lambda m: m.weight.mul_(2),
        lambda m: halve(m.weight),
        lambda m: torch.ops.nbcompile_tests.halve(m.weight),
        lambda m: torch.ops.nbcompile_tests.halve.default(m.weight.data),
        lambda m: m.weight.data.mul_(2),
        lambda m: m.weight.detach().view(-1).add_(1),
        lambda m: setattr(m.weight, "data", m.weight.data + 1),
        lambda m: m.weight.__setitem__(0, 7.0),
        lambda m: torch.add(m.weight, 1, out=m.weight),
        lambda m: F.relu(m.weight, inplace=True),
        lambda m: nn.init.ones_(m.weight),
        lambda m: m.weight.detach().numpy().fill(3.0),
        lambda m: np.asarray(m.weight.detach()).fill(3.0),
        lambda m: m.weight.untyped_storage().fill_(0),
        lambda m: torch.from_dlpack(m.weight.detach()).fill_(2),
    ],
)
def test_weights_that_forward_writes_are_those_of_a_copy(write: Any) -> None:
    def what(m: Any, x: Tensor) -> Tensor:
        write(m)
        return x * m.weight

    model = Does(what).eval()
    before, version = model.weight.detach().clone(), model.weight._version
    one = recorded(model, X)
    assert torch.equal(model.weight, before)
    assert model.weight._version == version
    with torch.no_grad():
        assert torch.equal(one.outputs, model(X.clone()))


@pytest.mark.parametrize("read", [lambda w: w.shape[0], lambda w: w + 1, lambda w: w[0], operator.neg, torch.mean])
def test_weights_that_are_read_are_those_of_the_model(read: Any) -> None:
    rig = Rig(Does(lambda m, x: x * m.weight + read(m.weight)).eval())
    record(rig, Call.positional(1), [X])
    assert not rig.writes


def test_python_writes_by_these_names_alone() -> None:
    """Of all that torch lets a mode see."""
    names = {name for name in dir(Tensor) if name.startswith("__") and callable(getattr(Tensor, name))}
    ours = {name for name in names if says_that_it_writes(name, {})}
    in_place = {name for name in names if name.startswith("__i") and f"__{name[3:]}" in names}
    assert ours == in_place | {"__setitem__"}
    assert {"__iadd__", "__imul__", "__iand__", "__ilshift__"} <= in_place


def test_an_embedding_that_renormalises_its_table() -> None:
    model = nn.Sequential(nn.Embedding(5, 3, max_norm=0.5))
    before = model[0].weight.detach().clone()
    recorded(model, torch.tensor([[0, 3, 1]]))
    assert torch.equal(model[0].weight, before)


def test_a_model_that_raises_is_left_alone() -> None:
    def what(m: Any, x: Tensor) -> Tensor:
        m.kept = x
        m.weight.add_(1)
        raise KeyError("mine")

    model = Does(what, nn.ReLU())
    before = model.weight.detach().clone()
    with pytest.raises(ModelError) as caught:
        recorded(model, X)
    assert str(caught.value.__cause__) == "'mine'"
    assert torch.equal(model.weight, before)
    assert not hasattr(model, "kept")
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_a_network_keeps_is_the_copys() -> None:
    def what(m: Any, x: Tensor) -> Tensor:
        if getattr(m, "grid", None) is None:
            m.grid, m.size = torch.linspace(0, 1, x.shape[3]).double(), x.shape
        return x + m.grid

    model = Does(what)
    one = check(model, X, other=-X)
    assert not one.constants
    assert type(model.size[3]) is int  # by the run of the model itself, in the check
    fresh = Does(what)
    recorded(fresh, X)
    assert not hasattr(fresh, "grid")
