import copy
import logging
from typing import Any, cast

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn import functional as F

import nbcompile
from nbcompile import zoo
from nbcompile.core.blocks import sites
from nbcompile.core.cost import cost
from nbcompile.core.errors import CaptureError, PostconditionError, PreconditionError, UsageError
from nbcompile.core.example import Origin, TensorSpec, inputs_for, origin_of, remember
from nbcompile.core.graph.nodes import norm_of
from nbcompile.core.numerics import relative_error
from nbcompile.deploy.deploy_form import deploy
from nbcompile.testing import scramble_

X = torch.randn(2, 1, 8, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def linear_giant(**options: Any) -> nn.Module:
    giant = scramble_(nbcompile.expand(scramble_(zoo.dscnn()).double(), X, **options), seed=1)
    for block in sites(giant).values():
        block.slope.fill_(1)
    return giant


def error(a: nn.Module, b: nn.Module) -> float:
    with torch.no_grad():
        return relative_error(a(X), copy.deepcopy(b).eval()(X))


def test_fuse_leaves_the_giant_alone() -> None:
    giant = linear_giant().train()
    before = copy.deepcopy(giant.state_dict())
    tiny = nbcompile.fuse(giant)
    assert giant.training
    assert not any(module.training for module in tiny.modules())
    assert sites(giant)
    assert all(
        torch.equal(value, before[key]) if isinstance(value, Tensor) else value == before[key]
        for key, value in giant.state_dict().items()
    )
    assert not {id(p) for p in tiny.parameters()} & {id(p) for p in giant.parameters()}
    assert origin_of(tiny) == origin_of(giant)


def test_a_ramp_in_the_middle_is_refused_with_what_remains() -> None:
    giant = linear_giant()
    plt = nbcompile.PLT(nbcompile.expand(zoo.dscnn(), X.float(), where="all"), steps=1600, start=100)
    for _ in range(500):
        plt.step()
    block = next(iter(sites(giant).values()))
    block.slope.fill_(plt.slope)
    block.ramp.copy_(torch.tensor(list(plt.state_dict().values())))
    with pytest.raises(PreconditionError) as caught:
        nbcompile.fuse(giant)
    assert str(caught.value) == (
        "contract-sites: 1 of 3 sites are not linear yet: 'features.block0.expand.conv' has slope 0.25, not 1.0, so "
        "its block is not one layer; 1,200 optimiser steps remain. Train on with PLT, or fuse with force=True "
        "(--force) and accept that the output changes"
    )


def test_forced_it_says_what_it_costs(caplog: pytest.LogCaptureFixture) -> None:
    giant = linear_giant()
    block = next(iter(sites(giant).values()))
    block.slope.fill_(0.25)
    with caplog.at_level(logging.WARNING, "nbcompile"):
        tiny = nbcompile.fuse(giant, force=True)
    inputs = inputs_for(giant, None, who="the test")
    with torch.no_grad():
        made = relative_error(tiny(*inputs), giant.eval()(*inputs))
    assert made > 1e-6
    assert caplog.messages == [
        f"fuse: forced with slopes below 1: the output changed by a relative error of {made:.3g}"
    ]


def test_forced_on_an_input_that_it_does_not_take() -> None:
    giant = linear_giant()
    next(iter(sites(giant).values())).slope.fill_(0.25)
    remember(giant, Origin((TensorSpec((1, 3, 32, 32)),)))
    with pytest.raises(
        PreconditionError, match="InvertedResidualNet does not run on the example input: RuntimeError: Given groups=1"
    ):
        nbcompile.fuse(giant, force=True)


def test_forced_without_an_example(caplog: pytest.LogCaptureFixture) -> None:
    giant = nbcompile.expand(zoo.dscnn(), X.float())
    del giant.__dict__["_nbcompile_origin"]
    with caplog.at_level(logging.WARNING, "nbcompile"):
        nbcompile.fuse(giant, force=True)
    assert caplog.messages == ["fuse: forced with slopes below 1; the error is not known, for want of an example input"]


def test_force_says_nothing_where_there_was_no_need(caplog: pytest.LogCaptureFixture) -> None:
    giant = linear_giant()
    assert error(nbcompile.fuse(giant, force=True), giant) <= 1e-12
    assert not caplog.messages


def test_weights_that_are_not_finite_are_named() -> None:
    giant = linear_giant()
    with torch.no_grad():
        giant.get_parameter("features.block2.expand.conv.last.weight")[3, 0] = float("nan")
    for force in (False, True):
        with pytest.raises(PreconditionError, match=r"'features\.block2\.expand\.conv\.last\.weight' holds NaN or Inf"):
            nbcompile.fuse(giant, force=force)


def test_scopes() -> None:
    giant = linear_giant()
    with pytest.raises(UsageError, match="scope='everything' is unknown; 'sites' or 'all'"):
        nbcompile.fuse(giant, cast(Any, "everything"))
    with pytest.raises(
        PreconditionError, match="InvertedResidualNet has no expansion blocks; expand it, or use scope="
    ):
        nbcompile.fuse(zoo.dscnn(), "sites")
    assert isinstance(nbcompile.fuse(giant), zoo.InvertedResidualNet)
    assert isinstance(nbcompile.fuse(giant, "all"), fx.GraphModule)
    assert isinstance(nbcompile.fuse(zoo.dscnn()), fx.GraphModule)


@pytest.mark.parametrize("preserve", [False, True])
def test_the_deploy_form(preserve: bool) -> None:
    """No norm, no dropout, no block; the same MACs; the same function."""
    giant = linear_giant(where="all", preserve=preserve)
    small = cast(fx.GraphModule, nbcompile.fuse(giant, "all", verify_each=True))
    assert error(small, giant) <= 1e-12
    assert not [node for node in small.graph.nodes if norm_of(small, node)]
    assert not sites(small)
    assert cost(small).macs == cost(zoo.dscnn(), X.float()).macs
    assert origin_of(small) == origin_of(giant)


def test_verify_each_proves_the_contraction() -> None:
    giant = linear_giant()
    assert error(nbcompile.fuse(giant, verify_each=True), giant) <= 1e-12


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0"])
def test_a_network_without_sites_is_lowered(name: str) -> None:
    model = scramble_(getattr(torchvision.models, name)(weights=None)).eval()
    x = torch.randn(1, 3, 33, 33)
    small = cast(fx.GraphModule, nbcompile.fuse(model))
    assert not [node for node in small.graph.nodes if norm_of(small, node)]
    with torch.no_grad():
        assert relative_error(small(x), model(x)) <= 1e-5


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return F.relu(y) if y.mean() > -1e9 else y


def test_a_model_that_cannot_be_traced(caplog: pytest.LogCaptureFixture) -> None:
    """Sites need no graph to be contracted; folding norms does."""
    model = scramble_(Branching()).double()
    giant = scramble_(nbcompile.expand(model, X, where=["conv"], preserve=True), seed=1)
    next(iter(sites(giant).values())).slope.fill_(1)
    tiny = nbcompile.fuse(giant)
    assert isinstance(tiny, Branching)
    assert error(tiny, giant) <= 1e-12
    with pytest.raises(CaptureError, match="Branching cannot be traced into a graph"):
        nbcompile.fuse(giant, "all")
    caplog.clear()
    kept = deploy(tiny, (X,))
    assert isinstance(kept, Branching)
    assert caplog.messages[0].startswith("nothing is merged: Branching cannot be traced into a graph")


def test_a_merge_that_is_wrong_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a fault in the algebra: the running mean forgotten."""
    giant = linear_giant()
    monkeypatch.setattr("nbcompile.passes.contract_sites._absorbers", lambda *_: ())
    with pytest.raises(PostconditionError, match=r"contract-sites changed the function: relative error .*e-0"):
        nbcompile.fuse(giant, verify_each=True)
