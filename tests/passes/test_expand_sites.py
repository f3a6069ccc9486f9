from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from nbcompile import zoo
from nbcompile.core.activations import Activation
from nbcompile.core.blocks import sites
from nbcompile.core.errors import PreconditionError, UsageError
from nbcompile.core.graph.nodes import aliases, render_graph
from nbcompile.core.site_spec import SiteSpec
from nbcompile.core.tracing.capture import capture
from nbcompile.passes import ContractSites, ExpandSites
from nbcompile.testing import check_pass, scramble_
from tests import symbolic

X = torch.randn(2, 4, 7, 5, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A layer, and what reads it."""

    def __init__(self, how: str = "norm", *, bias: bool = False, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = layer or nn.Conv2d(4, 4, 3, padding=1, bias=bias)
        self.other = nn.Conv2d(4, 4, 1)
        self.first: nn.Module = nn.BatchNorm2d(4, eps=1e-3, momentum=0.02)
        self.second = nn.BatchNorm2d(4)
        self.act: nn.Module = nn.ReLU6()
        self.how = how
        match how:
            case "untracked":
                self.first = nn.BatchNorm2d(4, track_running_stats=False)
            case "group":
                self.first = nn.GroupNorm(2, 4)
            case "sync":
                self.first = nn.SyncBatchNorm(4)
            case "alias":
                self.again = nn.ModuleDict({"it": self.layer})
        scramble_(self)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "twice":
            return self.act(self.first(self.layer(x)) + self.second(self.layer(2 * x)))
        y: Tensor = self.layer(x)
        match self.how:
            case "nothing":
                out = y
            case "alias":
                out = self.first(self.again["it"](x))
            case "two norms":
                out = self.first(y) + self.second(y)
            case "also read":
                out = self.first(y) + y
            case "shape":
                out = self.first(y).view(y.shape)
            case "shared norm":
                out = self.first(y) + self.first(self.other(x))
            case "residual":
                out = self.first(y + x)
            case "dense":
                out = self.other(self.first(y)) + torch.cat([x, y], 1)[:, 2:6]
            case "dropout":
                out = self.first(F.dropout(y, training=self.training))
            case "function":
                n = cast(Any, self.first)
                out = F.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias, self.training, 0.02, n.eps)
            case "batch statistics":
                out = F.batch_norm(y, None, None, training=True)
            case "weight":
                out = y + cast(Tensor, self.layer.weight).sum()
            case _:
                out = self.first(y)
        return cast(Tensor, self.act(out))


def site(model: nn.Module, **options: Any) -> SiteSpec:
    gm = ExpandSites(["layer"], **options)(capture(model)).gm
    return sites(gm)["layer"].spec


@pytest.mark.parametrize(
    ("how", "bias", "inner", "absorbers"),
    [
        ("norm", False, "norm", ("first.running_mean",)),
        ("norm", True, "norm", ()),
        ("shape", False, "norm", ("first.running_mean",)),
        ("function", False, "norm", ("first.running_mean",)),
        ("sync", False, "norm", ("first.running_mean",)),
        ("two norms", False, "norm", ("first.running_mean", "second.running_mean")),
        ("twice", False, "norm", ("first.running_mean", "second.running_mean")),
        ("alias", False, "norm", ("first.running_mean",)),
        ("nothing", False, "scale", ()),
        ("nothing", True, "bias", ()),
        ("also read", False, "scale", ()),
        ("also read", True, "norm", ()),
        ("shared norm", False, "scale", ()),
        ("residual", False, "scale", ()),
        ("residual", True, "bias", ()),
        ("dense", False, "scale", ()),
        ("dropout", False, "scale", ()),
        ("untracked", False, "scale", ()),
        ("untracked", True, "norm", ()),
        ("group", False, "scale", ()),
        ("group", True, "bias", ()),
        ("batch statistics", False, "scale", ()),
    ],
)
@pytest.mark.parametrize("preserve", [False, True])
def test_the_form_follows_from_the_readers(
    how: str, bias: bool, inner: str, absorbers: tuple[str, ...], preserve: bool
) -> None:
    """The form is decided here, and contracts exactly whatever it is."""
    gm = ExpandSites(["layer"], preserve=preserve)(capture(Net(how, bias=bias).double())).gm
    block = sites(gm)["layer"]
    assert (block.spec.inner, block.spec.absorbers) == (inner, absorbers)
    scramble_(block)
    block.slope.fill_(1)
    if preserve and block.last_norm is None:
        nn.init.normal_(cast(Tensor, block.last.weight))
    assert check_pass(ContractSites(), gm, X.double()).rewritten == ("layer",)


def test_inner_norms_are_the_neighbours() -> None:
    spec = site(Net())
    assert (spec.eps, spec.momentum, spec.sync) == (1e-3, 0.02, False)
    assert site(Net("sync")).sync
    assert (site(Net("function")).eps, site(Net("function")).momentum) == (1e-3, 0.02)


@pytest.mark.parametrize("where", [["layer"], ["first"], ["last"]])
def test_the_nearest_activation_is_taken(where: list[str]) -> None:
    """The one that follows; for the last layer, the one before; ReLU where there is none."""
    model = nn.Sequential()
    model.add_module("first", nn.Conv2d(4, 4, 1, bias=False))
    model.add_module("leaky", nn.LeakyReLU(0.2))
    model.add_module("layer", nn.Conv2d(4, 4, 1, bias=False))
    model.add_module("gelu", nn.GELU("tanh"))
    model.add_module("last", nn.Conv2d(4, 4, 1, bias=False))
    found = sites(ExpandSites(where)(capture(model)).gm)[where[0]].spec.activation
    assert found == (Activation("leaky_relu", 0.2) if where == ["first"] else Activation("gelu", "tanh"))
    bare = nn.Sequential(nn.Conv2d(4, 4, 1))
    assert sites(ExpandSites(["0"])(capture(bare)).gm)["0"].spec.activation == Activation("relu")


def test_gates_are_no_activations() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 4, 1), nn.SiLU())
    assert sites(ExpandSites(["0"])(capture(model)).gm)["0"].spec.activation == Activation("silu")


def test_with_preserve_the_function_stays() -> None:
    for how in ("norm", "also read", "residual"):
        result = check_pass(ExpandSites(["layer"], preserve=True), Net(how), X, repeatable=False)
        assert result.rewritten == ("layer",)
    assert check_pass(ExpandSites(["layer"]), Net(), X, exact=False, repeatable=False).modified


def test_a_layer_of_two_names_is_one_site() -> None:
    model = Net("alias")
    gm = capture(model)
    result = ExpandSites(["layer"])(gm)
    assert result.rewritten == ("layer",)
    assert aliases(result.gm, result.gm.get_submodule("layer")) == ("layer",)  # the graph calls one name

    both = nn.Sequential(conv := nn.Conv2d(4, 4, 1), nn.ReLU(), conv)
    assert ExpandSites(["*"])(capture(both)).rewritten == ("0",)


@pytest.mark.parametrize(("where", "pattern"), [("first:1", "inverted-residual"), (["features.stem.conv"], "named")])
def test_the_site_knows_who_found_it(where: Any, pattern: str) -> None:
    gm = ExpandSites(where)(capture(zoo.dscnn())).gm
    assert [block.spec.pattern for block in sites(gm).values()] == [pattern]


def odd(kind: str) -> nn.Module:
    conv: nn.Module = nn.Conv2d(4, 4, 3, padding=1)
    match kind:
        case "hook":
            conv.register_forward_hook(lambda *_: None)
        case "pre-hook":
            conv.register_forward_pre_hook(lambda *_: None)
        case "weight_norm":
            parametrizations.weight_norm(conv)
        case "spectral_norm":
            parametrizations.spectral_norm(conv)
        case "old spectral_norm":
            nn.utils.spectral_norm(conv)
        case "integer":
            conv.weight = nn.Parameter(torch.ones(4, 4, 3, 3, dtype=torch.int8), requires_grad=False)
        case "standardised":
            own = {"_conv_forward": lambda self, x, w, b: x, "__module__": "torch.nn"}  # of torch.nn: a leaf
            conv.__class__ = type("StdConv", (nn.Conv2d,), own)
    return conv


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("hook", "it carries hooks, which would be lost; remove them first"),
        ("pre-hook", "it carries hooks, which would be lost; remove them first"),
        ("weight_norm", "its weight is computed by a parametrization; remove it first"),
        ("spectral_norm", "its weight is computed by a parametrization; remove it first"),
        ("old spectral_norm", "its weight is computed by a parametrization; remove it first"),
        ("integer", "its weight is int8, not floating point"),
        ("standardised", "its class StdConv computes something of its own"),
    ],
)
def test_refuses_layers_whose_weight_does_not_say_everything(kind: str, reason: str) -> None:
    with pytest.raises(PreconditionError, match=f"^expand-sites: 'layer' cannot be expanded: {reason}"):
        ExpandSites(["layer"])(symbolic.capture(Net(layer=odd(kind))))


def test_refuses_tied_weights() -> None:
    model = Net("shared norm")
    model.layer = nn.Conv2d(4, 4, 1)
    model.other.weight = cast(nn.Parameter, model.layer.weight)
    with pytest.raises(PreconditionError, match=r"'layer' cannot be expanded: it shares a parameter with 'other\.weig"):
        site(model)


def test_refuses_a_layer_whose_weight_is_read_past_it() -> None:
    with pytest.raises(PreconditionError, match="'layer' cannot be expanded: other code reads its weight directly"):
        site(Net("weight"))


@pytest.mark.parametrize("act", [nn.Mish(), nn.PReLU(), nn.Hardtanh(), nn.LeakyReLU(-0.1), nn.Softplus()])
def test_refuses_activations_that_plt_does_not_know(act: nn.Module) -> None:
    model = Net()
    model.act = act
    message = rf"'layer' cannot be expanded: the activation beside it, 'act' \({type(act).__name__}\), cannot be linear"
    with pytest.raises(PreconditionError, match=message):
        site(model)


def test_refuses_a_giant() -> None:
    gm = ExpandSites(["layer"])(capture(Net())).gm
    with pytest.raises(
        PreconditionError, match=r"already has 1 expansion blocks \(the first: 'layer'\); fuse it first"
    ):
        ExpandSites(["other"])(gm)


def test_refuses_options() -> None:
    with pytest.raises(UsageError, match="block='dense' is unknown; one of inverted-residual, bottleneck, basic"):
        ExpandSites(block="dense")
    for ratio in (0, 65, 1.5, True):
        with pytest.raises(UsageError, match=f"ratio={ratio!r} must be a whole number from 1 to 64"):
            ExpandSites(ratio=cast(int, ratio))


@pytest.mark.parametrize("preserve", [False, True])
def test_golden_graph(preserve: bool, golden: Callable[[str, str], None]) -> None:
    gm = capture(zoo.InvertedResidual(4, 4, 2))
    result = ExpandSites("uniform:0.5", preserve=preserve)(gm)
    golden(f"expand_sites{'_preserve' if preserve else ''}", render_graph(result.gm))
