import copy
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, fx, nn

import nbcompile
from nbcompile import zoo
from nbcompile.core.algebra import AffineMap
from nbcompile.core.blocks import Expanded, sites
from nbcompile.core.errors import PostconditionError, PreconditionError
from nbcompile.core.graph.nodes import render_graph
from nbcompile.core.layers import LayerSpec
from nbcompile.core.tracing.capture import capture
from nbcompile.passes import ContractSites, ExpandSites
from nbcompile.testing import check_pass, scramble_
from tests.slow import one_in

NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def expanded(model: nn.Module, where: Any, **options: Any) -> fx.GraphModule:
    """A linear giant with random norms, in float64."""
    gm = ExpandSites(where, **options)(capture(model.double())).gm.eval()
    scramble_(gm)
    for block in sites(gm).values():
        block.slope.fill_(1)
        if block.original is not None and block.last_norm is None:
            nn.init.normal_(cast(Tensor, block.last.weight))  # zero at first, which would hide the block
    return gm


CONVS: dict[str, dict[str, Any]] = {
    "1": {"kernel_size": 1},
    "1, stride 2": {"kernel_size": 1, "stride": 2},
    "1, padded": {"kernel_size": 1, "padding": 1},
    "3": {"kernel_size": 3, "padding": 1},
    "3, stride 2": {"kernel_size": 3, "padding": 1, "stride": 2},
    "3, unpadded": {"kernel_size": 3},
    "5, stride 2": {"kernel_size": 5, "padding": 2, "stride": 2},
    "5, padded by 1": {"kernel_size": 5, "padding": 1},
    "oblong": {"kernel_size": (3, 1), "padding": (1, 0), "stride": (1, 2)},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2, "stride": 2},
    "same": {"kernel_size": 4, "padding": "same"},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "circular": {"kernel_size": 5, "padding": 2, "padding_mode": "circular", "stride": 2},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
    "grouped, 1": {"kernel_size": 1, "groups": 2, "stride": 2},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 4, "stride": 2},
}


SHAPES = [
    (block, preserve, pad_first)
    for block in ("inverted-residual", "bottleneck", "basic")
    for preserve in (False, True)
    for pad_first in (True, False)
    if pad_first or block != "basic"  # it has one form only
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("bias", one_in(2, [True, False]))
@pytest.mark.parametrize("kind", CONVS)
def test_every_convolution_comes_back(kind: str, bias: bool, norm: bool) -> None:
    """Every block, on the full map, at an odd and an even size."""
    layer = nn.Conv2d(4, 8, **CONVS[kind], bias=bias)
    for block, preserve, pad_first in SHAPES:
        model = nn.Sequential(copy.deepcopy(layer), *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU6())
        gm = expanded(model, ["0"], block=block, preserve=preserve, pad_first=pad_first, ratio=3)
        for size in ((7, 5), (8, 10))[: 1 if preserve or not pad_first else 2]:
            result = check_pass(ContractSites(), gm, torch.randn(2, 4, *size, dtype=torch.float64))
        found = result.gm.get_submodule("0")
        assert result.rewritten == ("0",)
        assert LayerSpec.of(found) == LayerSpec.of(layer)
        assert repr(found) == repr(layer)


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("preserve", [False, True])
def test_other_dimensions(axes: int, preserve: bool) -> None:
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[axes]
    for options in ({"kernel_size": 3, "padding": 1, "stride": 2}, {"kernel_size": 1}):
        model = nn.Sequential(conv(4, 6, bias=False, **options), NORMS[axes](6), nn.ReLU())
        gm = expanded(model, ["0"], preserve=preserve)
        x = torch.randn(2, 4, *(7, 6, 5)[:axes], dtype=torch.float64)
        assert check_pass(ContractSites(), gm, x).modified


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("preserve", [False, True])
@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4)])
def test_linear_layers(bias: bool, preserve: bool, shape: tuple[int, ...]) -> None:
    gm = expanded(nn.Sequential(nn.Linear(4, 6, bias=bias), nn.GELU()), ["0"], preserve=preserve)
    assert check_pass(ContractSites(), gm, torch.randn(shape, dtype=torch.float64)).modified


def test_a_linear_layer_before_a_norm() -> None:
    gm = expanded(nn.Sequential(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU()), ["0"])
    assert (sites(gm)["0"].spec.inner, sites(gm)["0"].spec.absorbers) == ("scale", ())
    assert check_pass(ContractSites(), gm, torch.randn(5, 4, dtype=torch.float64)).modified


def test_only_the_running_mean_that_takes_the_shift_changes() -> None:
    gm = expanded(zoo.dscnn(), "first:1")
    before = copy.deepcopy(gm.state_dict())
    ContractSites()(gm)
    after = gm.state_dict()
    kept = [key for key in after if key in before]
    differing = [key for key in kept if not torch.equal(after[key], before[key])]
    assert differing == ["features.block0.expand.norm.running_mean"]
    assert set(after) - set(kept) == {"features.block0.expand.conv.weight"}


def test_what_is_kept() -> None:
    """Dtype, memory format, mode and requires_grad of the layer."""
    layer = nn.Conv2d(4, 8, 3, bias=False).to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
    gm = expanded(nn.Sequential(layer, nn.BatchNorm2d(8), nn.ReLU()), ["0"], preserve=True)
    found = cast(nn.Conv2d, ContractSites()(gm).gm.get_submodule("0"))
    assert found.weight.dtype == torch.float64
    assert found.weight.is_contiguous(memory_format=torch.channels_last)
    assert not found.weight.requires_grad
    assert not found.training


def test_rounds_once() -> None:
    """In float32 the merged weight is the float64 one, rounded."""
    gm = ExpandSites("all")(capture(zoo.dscnn())).gm.eval()
    scramble_(gm)
    for block in sites(gm).values():
        block.slope.fill_(1)
    wanted = {name: block.merged(torch.float64).weight.float() for name, block in sites(gm).items()}
    ContractSites()(gm)
    assert all(torch.equal(cast(Tensor, gm.get_submodule(name).weight), w) for name, w in wanted.items())


def bent(**ramp: Any) -> fx.GraphModule:
    gm = expanded(zoo.dscnn(), "all")
    for i, block in enumerate(sites(gm).values()):
        if i in (1, 3):
            block.slope.fill_(ramp["slope"] + 0.1 * (i == 1))
            block.ramp.copy_(torch.tensor(ramp["ramp"]))
    return gm


def test_a_slope_below_1_is_named() -> None:
    gm = bent(slope=0.25, ramp=[1500, 1000, 2000])
    before = copy.deepcopy(gm.state_dict())
    with pytest.raises(PreconditionError) as caught:
        ContractSites()(gm)
    assert str(caught.value) == (
        "contract-sites: 2 of 5 sites are not linear yet: 'features.block3.expand.conv' has slope 0.25, not 1.0, so "
        "its block is not one layer; 1,500 optimiser steps remain. Train on with PLT, or fuse with force=True "
        "(--force) and accept that the output changes"
    )
    assert all(torch.equal(value, before[key]) for key, value in gm.state_dict().items())
    assert ContractSites(force=True)(gm).modified


def test_a_giant_that_no_plt_has_seen() -> None:
    with pytest.raises(PreconditionError, match=r"has slope 0, not 1\.0, .*; no PLT has run on it\. Train on with PLT"):
        ContractSites()(bent(slope=0.0, ramp=[0, 0, 0]))


def test_a_lagging_average_is_recognised() -> None:
    message = (
        r"has slope 0.97, .*; its schedule stands at 1, so this is a lagging average \(EMA\).* also=\[ema\.module\]"
    )
    with pytest.raises(PreconditionError, match=message):
        ContractSites()(bent(slope=0.97, ramp=[300, 100, 200]))


def test_rounding_of_averages_is_no_bend() -> None:
    gm = expanded(zoo.dscnn(), "all")
    next(iter(sites(gm).values())).slope.fill_(1 - 5e-7)
    assert ContractSites()(gm).modified


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["stages.0.layer.weight", "stages.1.norm.running_var", "last.weight", "slope"])
def test_what_is_not_finite_is_named(key: str, value: float) -> None:
    gm = expanded(zoo.dscnn(), "all")
    block = sites(gm)["features.block2.expand.conv"]
    block.state_dict()[key].view(-1)[0] = value
    message = (
        rf"'features\.block2\.expand\.conv\.{key}' holds NaN or Inf: training diverged; take an earlier checkpoint"
    )
    with pytest.raises(PreconditionError, match=message):
        ContractSites()(gm)


class Masked(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU())
        self.register_buffer("limit", torch.tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x).clamp(min=self.limit)
        return y


def test_limits_and_masks_may_be_infinite() -> None:
    gm = expanded(Masked(-torch.inf), ["net.0"])
    assert ContractSites()(gm).rewritten == ("net.0",)
    gm = expanded(Masked(torch.nan), ["net.0"])
    with pytest.raises(PreconditionError, match=r"contract-sites: 'limit' holds NaN or Inf"):
        ContractSites()(gm)


def test_a_merge_too_large_for_the_dtype() -> None:
    gm = ExpandSites(["0"])(capture(nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU()))).gm.eval()
    block = sites(gm)["0"]
    block.slope.fill_(1)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(1e20)
    with pytest.raises(PreconditionError, match=r"the merged weight of '0' is too large for torch\.float32"):
        ContractSites()(gm)


def test_a_giant_inside_another_model() -> None:
    """Absorbers are found under the new prefix; a block taken out of its model is refused."""
    giant = expanded(zoo.dscnn(), "first:2")
    outer = nn.Sequential(nn.Identity(), giant)
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    assert check_pass(ContractSites(), outer, x).rewritten[0] == "1.features.block0.expand.conv"

    stray = nn.Sequential(giant.get_submodule("features.block0.expand.conv"))
    with pytest.raises(
        PreconditionError, match=r"the block at '0' was expanded as 'features\.block0\.expand\.conv': fuse"
    ):
        ContractSites()(capture(stray))


def test_a_wrong_merge_does_not_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """The merged map must have the layer's own geometry, and its shift a place to go."""
    gm = expanded(zoo.dscnn(), "first:1")

    def crooked(self: Expanded, dtype: torch.dtype = torch.float64) -> AffineMap:
        return AffineMap(torch.ones(24, 8, 1, 1), None, (2, 2), ((0, 0), (0, 0)), (1, 1))

    monkeypatch.setattr(Expanded, "merged", crooked)
    with pytest.raises(
        PostconditionError, match=r"block 'features\.block0\.expand\.conv' merged to .*, not to the lay"
    ):
        ContractSites()(gm)


def test_a_shift_without_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    gm = expanded(nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.ReLU()), ["0"])

    def shifted(self: Expanded, dtype: torch.dtype = torch.float64) -> AffineMap:
        return AffineMap(torch.ones(4, 4, 1, 1), torch.ones(4), (1, 1), ((0, 0), (0, 0)), (1, 1))

    monkeypatch.setattr(Expanded, "merged", shifted)
    with pytest.raises(PostconditionError, match="the shift of '0' has neither a bias nor a norm to go to"):
        ContractSites()(gm)


def test_blocks_left_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    gm = expanded(zoo.dscnn(), "first:1")
    monkeypatch.setattr("nbcompile.passes.contract_sites.put_all", lambda *_: None)
    with pytest.raises(PostconditionError, match=r"blocks are left: features\.block0\.expand\.conv"):
        ContractSites()(gm)


def test_golden_graph(golden: Callable[[str, str], None]) -> None:
    original = capture(zoo.InvertedResidual(4, 4, 2))
    wanted = render_graph(original)
    gm = expanded(zoo.InvertedResidual(4, 4, 2), "all")
    assert render_graph(ContractSites()(gm).gm) == wanted
    golden("contract_sites", wanted)


class Rewired(nn.Module):
    """A layer and its norm; ``between`` may come between them later, under the same names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.between = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), False

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = y.relu() if self.between else y
        return cast(Tensor, self.norm(y)).relu()


def test_a_norm_that_no_longer_reads_its_layer_takes_no_shift() -> None:
    giant = nbcompile.expand(Rewired(), torch.randn(2, 3, 7, 5), where="all")
    for block in sites(giant).values():
        block.slope.fill_(1)
    assert isinstance(nbcompile.fuse(giant), Rewired)
    giant.between = True  # type: ignore[assignment]
    with pytest.raises(PreconditionError) as caught:
        nbcompile.fuse(giant)
    assert str(caught.value) == (
        "contract-sites: 'conv' is not read by the norms norm.running_mean alone, as when it was expanded: its "
        "shift would be lost; fuse the model as expand returned it"
    )
