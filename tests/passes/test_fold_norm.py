from collections.abc import Callable
from typing import Any, cast

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from nbcompile.core.capture import capture
from nbcompile.core.errors import PreconditionError
from nbcompile.core.graph import norm_of, render
from nbcompile.passes import FoldNorm, RemoveIdentity
from nbcompile.testing import check_pass, scramble_

X = torch.randn(2, 4, 7, 5, generator=torch.Generator().manual_seed(0))
KINDS: dict[int, tuple[type[nn.Module], type[nn.Module]]] = {
    1: (nn.Conv1d, nn.BatchNorm1d),
    2: (nn.Conv2d, nn.BatchNorm2d),
    3: (nn.Conv3d, nn.BatchNorm3d),
}


class ConvNorm(nn.Module):
    def __init__(self, axes: int = 2, *, affine: bool = True, norm: nn.Module | None = None, **conv: Any) -> None:
        super().__init__()
        layer, kind = KINDS[axes]
        self.conv = layer(4, 8, **{"kernel_size": 3, "padding": 1, **conv})
        self.norm = norm or kind(8, affine=affine)
        scramble_(self)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_folds(groups: int, bias: bool, affine: bool, dtype: torch.dtype) -> None:
    model = ConvNorm(affine=affine, groups=groups, bias=bias).to(dtype)
    result = check_pass(FoldNorm(), model, X.to(dtype))
    assert (result.rewritten, result.skipped) == (("conv",), ())
    conv = result.gm.get_submodule("conv")
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    assert conv.weight is not model.conv.weight


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "dilation": 2}, {"padding_mode": "reflect"}, {"padding": "same"}]
)
def test_folds_whatever_the_geometry(axes: int, options: dict[str, Any]) -> None:
    x = torch.randn(2, 4, *(7, 5, 6)[:axes], dtype=torch.float64)
    assert check_pass(FoldNorm(), ConvNorm(axes, **options).double(), x).modified


def test_folds_sync_batch_norm_and_keeps_what_is_frozen() -> None:
    model = ConvNorm(norm=nn.SyncBatchNorm(8), bias=False).double().requires_grad_(False)
    result = check_pass(FoldNorm(), model, X.double())
    assert not any(p.requires_grad for p in result.gm.parameters())


class Functional(nn.Module):
    """``F.batch_norm`` in all the ways it can be called."""

    def __init__(self, how: str = "plain") -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8, eps=1e-3)
        self.how = how
        scramble_(self)

    def forward(self, x: Tensor) -> Tensor:
        n, y = self.norm, self.conv(x)
        mean, var = cast(Tensor, n.running_mean), cast(Tensor, n.running_var)
        match self.how:
            case "plain":
                return F.batch_norm(y, mean, var, n.weight, n.bias, self.training, 0.1, n.eps)
            case "keywords":
                return F.batch_norm(y, running_mean=mean, running_var=var, weight=n.weight, eps=n.eps)
            case "batch":
                return F.batch_norm(y, mean.clone(), var.clone(), n.weight, n.bias, training=True)
            case "always":
                return F.batch_norm(y, None, None, n.weight, n.bias, training=True)
            case _:
                return F.batch_norm(y, mean, var, n.weight * 2, n.bias)


@pytest.mark.parametrize("how", ["plain", "keywords"])
def test_folds_the_function(how: str) -> None:
    result = check_pass(FoldNorm(), Functional(how).double(), X.double())
    assert result.rewritten == ("conv",)
    assert {node.op for node in result.gm.graph.nodes} == {"placeholder", "call_module", "output"}


def test_folds_timms_norm_and_activation() -> None:
    model = scramble_(nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), BatchNormAct2d(8))).double()
    assert check_pass(FoldNorm(), model, X.double()).rewritten == ("0",)


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "efficientnet_b0"])
def test_timms_networks_keep_no_norm(name: str) -> None:
    model = scramble_(timm.create_model(name)).double()
    x = torch.randn(1, 3, 33, 33, dtype=torch.float64)
    gm = check_pass(FoldNorm(), model, x).gm
    assert not [node for node in gm.graph.nodes if norm_of(gm, node)]


class Wired(nn.Module):
    """Convolutions and norms wired in ways that folding must mind."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.other, self.second = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.how = how
        match how:
            case "tied":
                self.other.weight = self.conv.weight
            case "untracked":
                self.norm = nn.BatchNorm2d(4, track_running_stats=False)
            case "hooked":
                self.conv.register_forward_hook(lambda *_: None)
            case "parametrized":
                parametrizations.weight_norm(self.conv)
            case "transposed":
                self.conv = nn.ConvTranspose2d(4, 4, 3, padding=1)  # type: ignore[assignment]
        scramble_(self)

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case "two readers":
                y = self.conv(x)
                out = self.norm(y) + y
            case "called twice":
                out = self.norm(self.conv(self.conv(x)))
            case "tied":
                out = self.norm(self.conv(x)).sum() + self.other(x)
            case "no layer":
                out = self.norm(x)
            case "two norms":
                out = self.second(self.norm(self.conv(x)))
            case "shared norm":
                out = self.norm(self.conv(x)).mean() + self.norm(self.other(x))
            case "in place":
                out = self.norm(self.conv(x))
                self.act(out)
                out.mul_(2)
            case "dead":
                x.view(-1)
                out = self.other(x)
            case _:
                out = self.norm(self.conv(x))
        result: Tensor = out
        return result


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("two readers", "'conv' has 2 readers"),
        ("called twice", "'conv' is called 2 times: its weights are shared"),
        ("tied", "'conv' shares a parameter with another module"),
        ("no layer", "its input 'x' is no convolution"),
        ("transposed", "its input 'conv' is no convolution"),
        ("untracked", "it has no running statistics: it normalises by the batch, also in eval mode"),
        ("hooked", "'conv' is left alone: it carries hooks, which would be lost; remove them first"),
        ("parametrized", "'conv' is left alone: its weight is computed by a parametrization; remove it first"),
    ],
)
def test_leaves_alone_and_says_why(how: str, reason: str) -> None:
    model = Wired(how)
    if how == "tied":  # parameters of modules outside the graph's leaves count as well
        assert model.other.weight is model.conv.weight
    result = check_pass(FoldNorm(), model, X)
    assert [skip.reason for skip in result.skipped] == [reason]
    assert not result.modified


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("batch", "it has no running statistics: it normalises by the batch, also in eval mode"),
        ("always", "it has no running statistics: it normalises by the batch, also in eval mode"),
        ("computed", "'mul', one of its parameters, is computed"),
    ],
)
def test_leaves_functions_alone(how: str, reason: str) -> None:
    result = check_pass(FoldNorm(), Functional(how), X)
    assert [skip.reason for skip in result.skipped] == [reason]


@pytest.mark.parametrize(
    ("how", "rewritten"),
    [
        ("two norms", ("conv", "conv")),
        ("shared norm", ("conv", "other")),
        ("in place", ("conv",)),  # what has no reader but writes in place must stay
        ("dead", ()),  # dead code is no business of this pass
    ],
)
def test_folds_what_it_can(how: str, rewritten: tuple[str, ...]) -> None:
    result = check_pass(FoldNorm(), Wired(how).double(), X.double())
    assert (result.rewritten, result.skipped) == (rewritten, ())


def test_refuses_training_mode() -> None:
    gm = capture(ConvNorm(), 1).train()
    with pytest.raises(PreconditionError, match=r"fold-norm: 'norm' is in training mode; call model\.eval\(\) first"):
        FoldNorm()(gm)


def test_golden_graph(golden: Callable[[str, str], None]) -> None:
    gm = capture(nn.Sequential(ConvNorm(), nn.ReLU(), nn.Dropout(), nn.Conv2d(8, 2, 1), nn.BatchNorm2d(2)).eval(), 1)
    RemoveIdentity()(gm)
    golden("fold_norm", render(FoldNorm()(gm).gm))
