from dataclasses import FrozenInstanceError, dataclass
from typing import ClassVar

import pytest
import torch
from torch import fx, nn

from nbcompile.core.errors import PostconditionError, PreconditionError
from nbcompile.passes import DEVICE, FUSE, PASSES, ContractSites, ExpandSites, Pass, PassResult, Skip


@dataclass(frozen=True)
class Traced(Pass):
    """Notes the order of its parts; breaks what it is told to."""

    name: ClassVar[str] = "traced"
    order: ClassVar[list[str]] = []

    fault: str = ""

    def requires(self, gm: fx.GraphModule) -> None:
        self.order.append("requires")
        if self.fault == "requires":
            raise PreconditionError("not ready")

    def call(self, gm: fx.GraphModule) -> PassResult:
        self.order.append("call")
        relu = next(node for node in gm.graph.nodes if node.op == "call_function")
        relu.target = torch.tanh
        if self.fault == "lint":
            relu.args = (fx.Node(fx.Graph(), "stray", "placeholder", "stray", (), {}),)
        return PassResult(gm, ("relu",), (Skip("x", "why not"),))

    def ensures(self, gm: fx.GraphModule) -> None:
        self.order.append("ensures")
        if self.fault == "ensures":
            raise PostconditionError("wrong")


class Net(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x)


def traced(fault: str) -> PassResult:
    Traced.order.clear()
    return Traced(fault)(fx.symbolic_trace(Net()))


def test_requires_call_ensures_and_recompiles() -> None:
    result = traced("")
    assert Traced.order == ["requires", "call", "ensures"]
    assert result.modified
    assert result.skipped == (Skip("x", "why not"),)
    assert torch.equal(result.gm(torch.ones(1)), torch.tanh(torch.ones(1)))
    assert not PassResult(result.gm).modified


def test_what_is_not_ready_is_not_touched() -> None:
    with pytest.raises(PreconditionError, match="not ready"):
        traced("requires")
    assert Traced.order == ["requires"]


def test_a_broken_graph_does_not_leave_a_pass() -> None:
    with pytest.raises(RuntimeError, match="does not belong to this Graph"):
        traced("lint")
    with pytest.raises(PostconditionError, match="wrong"):
        traced("ensures")


def test_passes_are_values() -> None:
    assert Traced("a") == Traced("a") != Traced("b")
    with pytest.raises(FrozenInstanceError):
        Traced().fault = "b"  # type: ignore[misc]
    with pytest.raises(TypeError, match="abstract"):
        Pass()  # type: ignore[abstract]


def test_every_pass_is_in_one_pipeline_or_a_verb_by_itself() -> None:
    assert sorted((*FUSE, *DEVICE, ExpandSites.name, ContractSites.name)) == sorted(PASSES)
    assert all(cls.name == name for name, cls in PASSES.items())
