import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import timm.layers
import torch
from torch import Tensor, fx, nn
from torchvision.ops import FrozenBatchNorm2d

from nbcompile.passes import Pass, PassResult
from nbcompile.testing import check_pass, enliven_, scramble_

X = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y


@dataclass(frozen=True)
class Planted(Pass):
    """Does one wrong thing, or nothing."""

    name: ClassVar[str] = "planted"

    fault: str = ""

    def call(self, gm: fx.GraphModule) -> PassResult:
        conv = gm.get_submodule("conv")
        assert isinstance(conv, nn.Conv2d)
        with torch.no_grad():
            match self.fault:
                case "value":
                    conv.weight[0, 0, 0, 0] += 1e-3
                    return PassResult(gm, ("conv",))
                case "silent":
                    conv.weight.mul_(1 + 1e-7)
                case "boast":
                    return PassResult(gm, ("conv",))
                case "dtype":
                    gm.graph.output_node().prepend(last := gm.graph.create_node("call_method", "double", ()))
                    last.args = gm.graph.output_node().args
                    gm.graph.output_node().args = (last,)
                    return PassResult(gm, ("output",))
                case "again":
                    gm.graph.output_node().prepend(last := gm.graph.create_node("call_method", "contiguous", ()))
                    last.args = gm.graph.output_node().args
                    gm.graph.output_node().args = (last,)
                    return PassResult(gm, ("output",))
                case "lint":
                    next(iter(gm.graph.find_nodes(op="call_module"))).target = "gone"
        return PassResult(gm)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("value", r"planted: the output changed by .*e-0\d, at most 1e-05 is rounding"),
        ("silent", "planted: modified is False, but the graph says True"),
        ("boast", "planted: modified is True, but the graph says False"),
        ("dtype", r"planted: the output became .*float64.* from .*float32"),
        ("again", "planted: a second run still rewrites output"),
    ],
)
def test_check_pass_sees(fault: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_pass(Planted(fault), Net(), X)


def test_check_pass_lints() -> None:
    with pytest.raises(RuntimeError, match="nonexistent"):
        check_pass(Planted("lint"), Net(), X)


def test_check_pass_leaves_the_model_alone() -> None:
    model = Net().train()
    before = copy.deepcopy(model.state_dict())
    result = check_pass(Planted(), model, X)
    assert not result.modified
    assert (model.training, model.norm.training) == (True, True)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_check_pass_allows_what_is_said() -> None:
    assert check_pass(Planted("value"), Net(), X, exact=False, repeatable=False).modified
    assert check_pass(Planted("again"), Net(), X, repeatable=False).rewritten == ("output",)


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(64), nn.SyncBatchNorm(64), nn.LayerNorm(64), nn.GroupNorm(4, 64), nn.RMSNorm(64)]
)
def test_scramble_reaches_every_norm(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm)
    conv, state = copy.deepcopy(model[0].state_dict()), torch.get_rng_state()
    first = copy.deepcopy(scramble_(model, seed=3).state_dict())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, conv[key]) for key, value in model[0].state_dict().items())
    for key, value in norm.state_dict().items():
        if value.is_floating_point():
            assert len(value.unique()) == 64, key
    assert 0 < int((norm.get_parameter("weight") < 0).sum()) < 32
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        assert norm.running_var is not None
        assert float(norm.running_var.min()) >= 0.5
    assert all(torch.equal(value, first[key]) for key, value in scramble_(model, seed=3).state_dict().items())


def test_scramble_takes_norms_without_statistics_or_parameters() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, track_running_stats=False))
    assert scramble_(model) is model
    assert isinstance(model[0].running_mean, Tensor)
    assert float(model[0].running_mean.abs().min()) > 0


@pytest.mark.parametrize(
    "norm",
    [
        FrozenBatchNorm2d(64),
        timm.layers.BatchNormAct2d(64),
        timm.layers.FrozenBatchNormAct2d(64),
        timm.layers.LayerNorm2d(64),
        timm.layers.RmsNorm2d(64),
        timm.layers.EvoNorm2dB0(64),
    ],
)
def test_scramble_reaches_the_norms_of_libraries(norm: nn.Module) -> None:
    before = copy.deepcopy(norm.state_dict())
    scramble_(norm)
    changed = {key for key, value in norm.state_dict().items() if not torch.equal(value, before[key])}
    assert changed >= {"weight", "bias", "running_mean", "running_var"} & before.keys()
    assert changed


class Dull(Net):
    """What fresh networks have: a bias of zeros, a layer scale next to nothing; and a norm with its own weights."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.conv.get_parameter("bias"))
        self.gamma = nn.Parameter(torch.full((4, 1, 1), 1e-6))
        self.own = FrozenBatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = 100 * super().forward(x)
        return y + self.gamma * self.own(y)


def test_enliven_makes_every_tensor_matter() -> None:
    model = Dull()
    weight, state = model.conv.weight.clone(), torch.get_rng_state()
    assert enliven_(model, X, seed=2) is model
    assert not model.training
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(model.conv.weight, weight)
    assert len(model.conv.get_parameter("bias").unique()) == 4
    gamma = model.gamma.detach()
    assert 0.5 <= float(gamma.abs().min()) <= float(gamma.abs().max()) <= 1.5
    y = model.conv(X).detach()
    mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3))
    assert float(model.norm.get_parameter("weight").detach().min()) < 0
    off = (mean - model.norm.get_buffer("running_mean")) / var.sqrt() * model.norm.get_parameter("weight").sign()
    assert 0 < float(off.detach().min()) < 0.999 < 1.001 < float(off.detach().max()) < 3.5
    factor = model.norm.get_buffer("running_var") / var
    assert float(factor.min()) > 0.49
    assert float(factor.max()) < 2.01
    assert float(model.own.running_var.min()) > 100
    assert torch.equal(enliven_(Dull(), X, seed=2).get_parameter("gamma"), gamma)
    assert not torch.equal(enliven_(Dull(), X, seed=1).get_parameter("gamma"), gamma)
    assert not model.norm._forward_pre_hooks


def test_enliven_keeps_statistics_of_what_arrives_once() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    wanted = copy.deepcopy(scramble_(model, seed=5).state_dict())
    enliven_(model, X[:1], seed=5)
    assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())
