import gc
import operator
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import nbcompile
from nbcompile.core.errors import PreconditionError, UsageError
from nbcompile.core.graph.guards import require_same_choice
from nbcompile.core.running import eval_mode, interpret, output_of, rehearsal, seldom_collected, untouched, watched
from tests.symbolic import capture


class Counts(nn.Module):
    """Writes to a buffer and to its input, and draws."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor, *, twice: bool = False) -> Tensor:
        self.count.add_(1)
        x.mul_(2)
        return self.drop(self.norm(self.norm(x) if twice else x)) + torch.rand(())


def state(model: nn.Module) -> list[Any]:
    modes = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    return [torch.get_rng_state().tolist(), modes, [v.tolist() for v in model.state_dict().values()]]


@pytest.mark.parametrize("fails", [False, True])
def test_no_trace_is_left(fails: bool) -> None:
    model, x = Counts(), torch.ones(2, 3)
    model.drop.eval()
    before = state(model)
    seen = []

    def enter(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append((name, module.training, torch.is_grad_enabled()))
        if fails and name == "drop":
            raise ValueError("enough")

    with (
        pytest.raises(ValueError, match="enough") if fails else nullcontext(),
        watched(model.named_modules(), enter=enter),
        untouched(model, (x,)) as (buffers, (copy,)),
    ):
        torch.func.functional_call(model, buffers, (copy,))
        assert (float(buffers["count"]), copy.tolist()) == (1, [[2.0] * 3] * 2)
    assert seen == [("", False, False), ("norm", False, False), ("drop", False, False)]
    assert state(model) == before
    assert x.tolist() == [[1.0] * 3] * 2


def test_an_output_is_of_copies_in_the_mode_that_the_model_is_in() -> None:
    model, x = Counts(), torch.ones(2, 3, requires_grad=True)
    random = torch.get_rng_state()
    first, second = (output_of(model, (x.detach(),)) for _ in range(2))
    assert x.tolist() == [[1.0] * 3] * 2
    assert not first.requires_grad
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(first, second)  # the same numbers are drawn again
    assert (float(model.count), int(model.norm.num_batches_tracked)) == (2, 2)  # whose buffers they are: a copy's


def test_modules_are_told_of_with_all_that_they_take_and_give() -> None:
    model, told = Counts().eval(), []

    def leave(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        told.append((name, type(module), len(args), dict(kwargs), tuple(output.shape)))

    with watched([("me", model), ("it", model.norm)], leave=leave):
        model(torch.ones(2, 3), twice=True)
    norm = ("it", nn.BatchNorm1d, 1, {}, (2, 3))
    assert told == [norm, norm, ("me", Counts, 1, {"twice": True}, (2, 3))]
    model(torch.ones(2, 3))
    assert len(told) == 3


def test_a_module_that_raises_gives_nothing_and_is_left() -> None:
    left: list[Any] = []
    model = nn.Sequential(nn.Linear(2, 3))
    with (
        pytest.raises(RuntimeError, match="shapes cannot be multiplied"),
        watched(model.named_modules(), leave=lambda *told: left.append((told[0], told[-1]))),
    ):
        model(torch.ones(1, 5))
    assert left == [("0", None), ("", None)]


def graph() -> fx.GraphModule:
    return capture(nn.Sequential(nn.BatchNorm1d(3), nn.ReLU(inplace=True)).eval())


def test_a_graph_is_told_of_node_by_node() -> None:
    gm, read, gave = graph(), {}, {}
    gm.get_submodule("0").running_mean.fill_(1)
    x = torch.tensor([[0.0, 1.0, 2.0]])

    def before(node: fx.Node, values: list[Any]) -> None:
        read[node.name] = [v.sign().tolist()[0] for v in values]

    def after(node: fx.Node, value: Any) -> None:
        gave[node.name] = value

    interpret(gm, [{"image": x}], before=before, after=after)  # type: ignore[arg-type]
    assert read == {"input_1": [], "_0": [[0, 1, 1]], "_1": [[-1, 0, 1]], "output": [[0, 0, 1]]}
    assert list(gave) == list(read)
    assert gave["_0"] is gave["_1"]  # written in place since
    assert gave["input_1"] is not x


def test_a_run_that_fails_is_a_sentence() -> None:
    message = (
        "GraphModule does not run on the example input: RuntimeError: running_mean should contain 5 elements not 3"
    )
    for run in (lambda: interpret(graph(), (torch.ones(2, 5),)), lambda: rehearsed(graph())):
        with pytest.raises(PreconditionError, match=message.replace("GraphModule", "(Sequential|GraphModule)")):
            run()


def rehearsed(gm: fx.GraphModule) -> None:
    with rehearsal(gm, (torch.ones(2, 5),)) as (buffers, copies):
        torch.func.functional_call(gm, buffers, copies)


def test_each_module_keeps_its_own_mode() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with eval_mode(model):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == [True, True, False]


def test_what_a_graph_says_of_its_inputs_is_said_as_it_is() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    more = graph.call_function(operator.gt, (graph.call_method("size", (x, 0)), 1))
    graph.call_function(require_same_choice, (more, True, "net.py:3 in forward"))
    graph.output(x)
    gm = fx.GraphModule(nn.Module(), graph)
    interpret(gm, (torch.ones(2, 3),))
    with pytest.raises(PreconditionError, match=r"^net\.py:3 in forward: the network chooses its way .* you want$"):
        interpret(gm, (torch.ones(1, 3),))


def test_garbage_is_looked_for_as_before_behind_a_verb() -> None:
    before = gc.get_threshold()
    with seldom_collected():
        assert gc.get_threshold() == (20_000, *before[1:])
        with seldom_collected():
            pass
        assert gc.get_threshold()[0] == 20_000
    assert gc.get_threshold() == before
    with pytest.raises(UsageError):
        nbcompile.fuse(nn.ReLU(), "nothing")  # type: ignore[arg-type]
    assert gc.get_threshold() == before


@pytest.mark.parametrize("often", [0, 50_000])
def test_who_looks_for_garbage_more_seldom_is_left_alone(often: int) -> None:
    before = gc.get_threshold()
    gc.set_threshold(often, *before[1:])
    try:
        with seldom_collected():
            assert gc.get_threshold()[0] == often
    finally:
        gc.set_threshold(*before)


def test_who_comes_first_may_leave_first() -> None:
    """As two threads do: nothing that was set for one is restored for good by the other."""
    before = gc.get_threshold()
    first, second = ExitStack(), ExitStack()
    first.enter_context(seldom_collected())
    second.enter_context(seldom_collected())
    first.close()
    assert gc.get_threshold()[0] >= 20_000
    second.close()
    assert gc.get_threshold() == before
