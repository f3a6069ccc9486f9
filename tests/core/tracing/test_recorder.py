"""What a graph cannot say is one node, or a reason with its place."""

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from nbcompile.core.tracing.recording import Recording
from tests.core.tracing.runs import Does, X, branch, check, recorded, run, written
from tests.core.tracing.scripted import scripted


def reasons(one: Recording) -> dict[str, str]:
    return {name: reason.why for name, reason in one.opaque.items()}


VALUES = "which depends on the inputs"


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (lambda m, x: x if x.sum() > 0 else -x, f"branches on a value, {VALUES}"),
        (lambda m, x: x * x.mean().item(), f"reads a value (item), {VALUES}"),
        (lambda m, x: x * float(x.mean()), f"reads a value by __float__, {VALUES}"),
        (lambda m, x: x * int(x.abs().sum()), f"reads a value by __int__, {VALUES}"),
        (lambda m, x: x + x[0, 0, 0].tolist()[0], f"reads values (tolist), {VALUES}"),
        (lambda m, x: x + torch.from_numpy(x.numpy() * 2), f"reads a value by numpy, {VALUES}"),
        (lambda m, x: x if torch.equal(x, x * 2) else -x, f"reads a value by equal, {VALUES}"),
        (lambda m, x: x if torch.allclose(x, x * 2) else -x, f"reads a value by allclose, {VALUES}"),
        (lambda m, x: x[: int(x[0, 0, 0, 0].long()) * 0 + 1], f"reads a value by __int__, {VALUES}"),
        (lambda m, x: x * m.weight.sum().item(), "reads a value (item), which depends on weights"),
        (lambda m, x: x if m.weight[0, 0, 0] > 0 else -x, "branches on a value, which depends on weights"),
        (
            lambda m, x: torch.vmap(lambda y: y * 2)(x),
            "calls torch.func or vmap, inside of which no graph can look",
        ),
    ],
)
def test_a_module_that_reads_values_is_one_node(what: Any, why: str) -> None:
    """And the root, which is no part, has a reason."""
    one = recorded(Does(what), X)
    assert one.refusal is not None
    assert one.refusal.why == why
    assert one.refusal.place.startswith(f"{__file__}:")
    assert str(one.refusal) == f"{one.refusal.place}: it {why}"
    assert not one.graph.find_nodes(op="output")
    one = recorded(nn.Sequential(nn.ReLU(), Does(what)).eval(), X)
    assert one.refusal is None
    assert reasons(one) == {"1": why}
    parts = [("call_module", "0"), ("call_module", "1")]
    assert written(one) == [("placeholder", "input"), *parts, ("output", "output")]


def test_the_innermost_is_opaque_and_leaves_no_nodes() -> None:
    def around(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.parts[0](x * m.weight)
        return y + m.parts[0].weight

    one = check(Does(around, Does(branch)), X)
    assert list(one.opaque) == ["parts.0"]
    assert written(one) == [
        ("placeholder", "x"),
        ("get_attr", "weight"),
        ("call_function", operator.mul),
        ("call_module", "parts.0"),
        ("get_attr", "parts.0.weight"),
        ("call_function", operator.add),
        ("output", "output"),
    ]


def test_containers_that_change_are_as_in_eager_mode() -> None:
    def skip(m: Any, skips: list[Tensor], x: Tensor) -> Tensor:
        return x + skips.pop()

    def what(m: Any, x: Tensor) -> Tensor:
        skips = [x * 2, x * 3]
        y = m.parts[0](skips, m.parts[0](skips, x))
        assert skips == []
        maps = [y, x, y * 2]
        maps.reverse()
        maps[1] = maps[1] * m.weight
        by_name = {"a": maps.pop(0)}
        by_name["b"] = by_name.pop("a")
        return by_name["b"] + maps[0] + maps[1]

    check(Does(what, Does(skip)), X)


@pytest.mark.parametrize(
    "change",
    [
        lambda m, xs: xs.pop() * (2 if xs[0].sum() > 1e9 else 3),
        lambda m, xs: xs[0].mul_(1 if xs[0].sum() > 1e9 else 3),
    ],
)
def test_an_opaque_part_that_changes_what_it_is_given_makes_its_caller_opaque(change: Any) -> None:
    def around(m: Any, x: Tensor) -> Tensor:
        xs = [x * 2, x * 3]
        y: Tensor = m.parts[0](xs)
        return y + sum(xs)  # type: ignore[no-any-return]

    model = nn.Sequential(nn.ReLU(), Does(around, Does(change))).eval()
    one = check(model, X)
    assert reasons(one) == {"1": f"branches on a value, {VALUES}"}
    refused = recorded(model[1], X)
    assert refused.refusal is not None
    assert refused.refusal.why == f"branches on a value, {VALUES}"


@pytest.mark.parametrize(
    ("value", "kind"), [(lambda x: {x}, "set"), (lambda x: iter([x]), "list_iterator"), (lambda x: nn.ReLU(), "ReLU")]
)
def test_an_output_that_a_graph_cannot_make(value: Any, kind: str) -> None:
    one = recorded(Does(lambda m, x: value(x)), X)
    assert one.refusal is not None
    assert one.refusal.why == f"passes on a {kind} as its output"


def test_a_tensor_whose_maker_is_not_shown_is_lost_not_frozen() -> None:
    """An attribute that opaque code kept: as a constant it would be that of one run."""

    def keeps(m: Any, x: Tensor) -> Tensor:
        m.kept = x * 2
        return x if x.sum() > 1e9 else -x

    def around(m: Any, x: Tensor) -> Tensor:
        return m.parts[0](x) + m.parts[0].kept  # type: ignore[no-any-return]

    one = recorded(Does(around, Does(keeps)), X)
    assert one.refusal is not None
    assert one.refusal.why == "uses a tensor that was made by code which the graph does not show"
    assert one.constants == {}


def test_a_size_that_was_taken_in_what_is_not_shown_is_lost() -> None:
    def keeps(m: Any, x: Tensor) -> Tensor:
        m.kept = x.shape[2]
        return x if x.sum() > 1e9 else -x

    one = recorded(Does(lambda m, x: m.parts[0](x) * m.parts[0].kept, Does(keeps)), X)
    assert one.refusal is not None
    assert one.refusal.why == "uses a size that was taken by code which the graph does not show"


def test_an_object_as_an_argument_of_a_function() -> None:
    def sorting(m: Any, x: Tensor) -> Tensor:
        return torch.stack(tuple({"a": x, ("b",): x}.values())).apply_(lambda v: v + 1)[0]

    one = recorded(Does(sorting), X)
    assert one.refusal is not None
    assert one.refusal.why == "passes on a function"


def test_functional_call_with_other_weights_is_what_it_computes() -> None:
    """A leaf that is called with weights that are not its own is no node of its own."""

    def what(m: Any, x: Tensor) -> Tensor:
        mixed = {"weight": m.parts[0].weight * 2, "bias": m.parts[0].bias}
        return functional_call(m.parts[0], mixed, (x,)) + m.parts[0](x)  # type: ignore[no-any-return]

    model = Does(what, nn.Conv2d(3, 3, 1).double())
    one = check(model, X)
    assert [t for op, t in written(one) if op == "call_module"] == ["parts.0"]
    assert one.graph.find_nodes(op="call_function", target=torch.conv2d)
    with torch.no_grad():
        model.parts[0].weight.mul_(3)  # type: ignore[operator]
    assert torch.equal(run(model, one, X), model(X))


@pytest.mark.parametrize("how", ["hook", "pre-hook", "forward"])
def test_what_is_changed_on_the_object_is_in_its_one_node(how: str) -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1).double()), nn.ReLU()).eval()
    match how:
        case "hook":
            model[0].register_forward_hook(lambda _, __, y: y * 2)
        case "pre-hook":
            model[0].register_forward_pre_hook(lambda _, args: (args[0] * 2,))
        case "forward":
            model[0].forward = lambda x: -x
    hooks = [dict(m._forward_hooks) for m in model.modules()]
    one = recorded(model, X)
    assert written(one)[1:3] == [("call_module", "0"), ("call_module", "1")]
    assert torch.equal(one.outputs, model(X))
    assert [dict(m._forward_hooks) for m in model.modules()] == hooks


def test_a_scripted_part_is_one_node() -> None:
    model = nn.Sequential(scripted(nn.Sequential(nn.Conv2d(3, 4, 1).double(), nn.ReLU())), nn.ReLU()).eval()
    one = check(model, X)
    assert [t for op, t in written(one) if op == "call_module"] == ["0", "1"]
    assert type(model[0]) is not nn.Sequential
    assert isinstance(model[0], torch.jit.ScriptModule)


def test_a_shared_module_has_one_name_and_a_node_a_call() -> None:
    relu, twice = nn.ReLU(), Does(lambda m, x: x * 2)
    one = check(nn.Sequential(relu, twice, relu, twice), X)
    assert [t for op, t in written(one) if op == "call_module"] == ["0", "0"]
    assert len(one.calls["1"]) == 2


def test_a_call_that_fails_and_is_caught_is_over() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrong, self.right = nn.Sequential(nn.Linear(9, 5)).double(), nn.Sequential(nn.Linear(5, 5)).double()

        def forward(self, x: Tensor) -> Tensor:
            try:
                y: Tensor = self.wrong(x)
            except RuntimeError:
                y = self.right(x)
            return self.right[0](y)  # type: ignore[no-any-return]

    one = check(Fails(), X)
    assert [t for op, t in written(one) if op == "call_module"] == ["right.0", "right.0"]
    assert one.passed_by == {"right"}
