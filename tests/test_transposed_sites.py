"""Transposed convolutions are sites like any other: they expand, train in weight space, contract and export."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import nbcompile
from nbcompile import PLT, collapse_
from nbcompile.core.blocks import sites
from nbcompile.core.errors import PreconditionError
from nbcompile.core.layers import LayerSpec
from nbcompile.core.numerics import relative_error
from nbcompile.core.site_spec import BLOCKS
from nbcompile.core.tracing.capture import capture
from nbcompile.passes.contract_sites import ContractSites
from nbcompile.passes.expand_sites import ExpandSites
from nbcompile.testing import check_pass, scramble_

UPSAMPLERS: dict[str, dict[str, Any]] = {
    "2, stride 2": {"kernel_size": 2, "stride": 2},
    "4, stride 2": {"kernel_size": 4, "stride": 2, "padding": 1},
    "3, with output padding": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    "3, stride 1": {"kernel_size": 3, "padding": 1},
    "1, stride 3": {"kernel_size": 1, "stride": 3, "output_padding": 2},
    "dilated": {"kernel_size": 3, "dilation": 2, "stride": (1, 2), "output_padding": (1, 0)},
    "grouped": {"kernel_size": 2, "stride": 2, "groups": 2},
    "depthwise": {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 4},
}
SHAPES = [(block, preserve) for block in BLOCKS for preserve in (False, True)]


def expanded(model: nn.Module, **options: Any) -> fx.GraphModule:
    """A linear giant with random norms, in float64."""
    gm = ExpandSites(["0"], ratio=3, **options)(capture(model.double())).gm.eval()
    scramble_(gm)
    for block in sites(gm).values():
        block.slope.fill_(1)
        if block.original is not None and block.last_norm is None:
            nn.init.normal_(block.last.get_parameter("weight"))  # zero at first, which would hide the block
    return gm


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", UPSAMPLERS)
def test_every_transposed_convolution_comes_back(kind: str, bias: bool, norm: bool) -> None:
    """Every block, on the full map; as many outputs as inputs, so that a weight not exchanged would fit."""
    layer = nn.ConvTranspose2d(4, 4, **UPSAMPLERS[kind], bias=bias)
    for block, preserve in SHAPES:
        model = nn.Sequential(copy.deepcopy(layer), *([nn.BatchNorm2d(4)] if norm else []), nn.ReLU6())
        gm = expanded(model, block=block, preserve=preserve, pad_first=preserve)
        result = check_pass(ContractSites(), gm, torch.randn(2, 4, 7, 5, dtype=torch.float64))
        found = result.gm.get_submodule("0")
        assert result.rewritten == ("0",)
        assert LayerSpec.of(found) == LayerSpec.of(layer)
        assert repr(found) == repr(layer)


@pytest.mark.parametrize("preserve", [False, True])
def test_other_dimensions(preserve: bool) -> None:
    for axes, cls, norm in ((1, nn.ConvTranspose1d, nn.BatchNorm1d), (3, nn.ConvTranspose3d, nn.BatchNorm3d)):
        model = nn.Sequential(cls(4, 6, 3, stride=2, padding=1, output_padding=1, bias=False), norm(6), nn.ReLU())
        x = torch.randn(2, 4, *(5, 4, 3)[:axes], dtype=torch.float64)
        assert check_pass(ContractSites(), expanded(model, preserve=preserve), x).modified


@pytest.mark.parametrize("block", BLOCKS)
def test_the_transposed_layer_comes_first_and_the_rest_is_pointwise(block: str) -> None:
    gm = expanded(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), nn.ReLU()), block=block)
    site = sites(gm)["0"]
    first, *rest = [LayerSpec.of(m) for m in site.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert (first.kind, first.kernel, first.stride, first.output_padding) == (
        "ConvTranspose2d",
        (3, 3),
        (2, 2),
        (1, 1),
    )
    assert first.groups == (4 if block == "inverted-residual" else 2)
    assert {layer.kind for layer in rest} == {"Conv2d"}
    assert all(layer.pointwise and layer.stride == (1, 1) for layer in rest)
    assert (site.in_channels, site.out_channels, site.output_padding) == (4, 6, (1, 1))


class Segmenter(nn.Module):
    """Down by strides, up by transposed convolutions, with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(x)
        out: Tensor = self.head(self.up(self.deep(y)) + y)
        return out


X = torch.randn(2, 3, 16, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def giant() -> nn.Module:
    """Expanded at both transposed layers and at the end of its ramp."""
    torch.manual_seed(0)
    model = nbcompile.expand(scramble_(Segmenter()), X, ["up.0", "head"], preserve=True)
    scramble_(model)
    for block in sites(model).values():
        if block.last_norm is None:
            nn.init.normal_(block.last.get_parameter("weight"), std=0.2)
    PLT(model, steps=1).step()
    return model.eval()


def test_there_and_back(giant: nn.Module, tmp_path: Path) -> None:
    """Through a file, to the original's keys, shapes, MACs and params, and to ONNX, which is run and compared."""
    nbcompile.save(giant, tmp_path / "trained.pt")
    tiny = nbcompile.fuse(nbcompile.load(tmp_path / "trained.pt"))
    original = Segmenter()
    original.load_state_dict(tiny.state_dict())
    with torch.no_grad():
        assert relative_error(original.eval()(X), giant(X)) < 1e-5
    costs = [nbcompile.cost(m, X) for m in (tiny, original)]
    assert (costs[0].macs, costs[0].params) == (costs[1].macs, costs[1].params)
    nbcompile.verify(giant, tiny).raise_on_failure()
    nbcompile.export(tiny, tmp_path / "tiny.onnx", X)
    assert (tmp_path / "tiny.onnx").exists()


def test_the_linear_phase_in_weight_space(giant: nn.Module) -> None:
    plain = copy.deepcopy(giant).double().train()
    for block in sites(plain).values():
        block.eval()  # collapse_ freezes the inner norms
    collapsed = collapse_(copy.deepcopy(giant).double().train())
    x = X.double()
    outputs = []
    for model in (plain, collapsed):
        y = model(x)
        y.square().mean().backward()
        outputs.append(y.detach())
    assert relative_error(outputs[1], outputs[0]) < 1e-12
    gradients = dict(plain.named_parameters())
    compared = 0
    for name, parameter in collapsed.named_parameters():
        if parameter.grad is not None:
            wanted = gradients[name].grad
            assert wanted is not None
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-10, atol=1e-14)  # a shift before a norm has none
            compared += 1
    assert compared > 20


def test_a_rule_finds_them() -> None:
    ups = [nn.Sequential(nn.ConvTranspose2d(3, 3, 2, 2), nn.BatchNorm2d(3), nn.ReLU()) for _ in range(2)]
    assert list(sites(nbcompile.expand(nn.Sequential(*ups), X, "all"))) == ["0.0", "1.0"]


class Sized(nn.Module):
    """Asks its transposed layer for the size of what it saw before."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 3, 3, 2)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.up(x, output_size=(33, 26)))
        return y


def test_refuses_a_layer_that_is_told_its_output_size() -> None:
    with pytest.raises(PreconditionError, match="'up' cannot be expanded: it is called with an output size, which its"):
        nbcompile.expand(Sized(), X, ["up"])
