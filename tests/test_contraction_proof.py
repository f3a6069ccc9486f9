"""``fuse`` of a giant compares what it made with the giant, and refuses what differs."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nbcompile
from nbcompile.core.blocks import Expanded, sites
from nbcompile.core.errors import PostconditionError, PreconditionError
from nbcompile.core.example import Origin, TensorSpec, remember
from nbcompile.passes import contract_sites
from nbcompile.testing import scramble_

X = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A layer without a bias, whose shift two norms take, and one with a bias."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv, self.norm, self.other = (
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.BatchNorm2d(8),
        )
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        z = self.norm(y).relu() + self.other(y).sigmoid()
        return self.head(z)


def linear(model: nn.Module, x: Tensor = X, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    giant = scramble_(nbcompile.expand(scramble_(model), x, ["conv", "head"], preserve=True, proof=False, **options), 1)
    for block in sites(giant).values():
        block.slope.fill_(1)
    return giant.eval()


def test_a_right_one_passes() -> None:
    giant = linear(Net())
    assert {name: bool(block.spec.absorbers) for name, block in sites(giant).items()} == {"conv": True, "head": False}
    tiny = nbcompile.fuse(giant)
    with torch.no_grad():
        torch.testing.assert_close(tiny(X), giant(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("site", ["conv", "head"])
def test_a_wrong_weight_names_its_site(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    giant, right = linear(Net()), contract_sites._contracted

    def wrong(root: nn.Module, name: str, block: Expanded) -> nn.Module:
        layer = right(root, name, block)
        if name == site:
            layer.get_parameter("weight").data[-1] *= 1.001
        return layer

    monkeypatch.setattr(contract_sites, "_contracted", wrong)
    with pytest.raises(
        PostconditionError,
        match=rf"^fuse: what is to stand for '{site}' is another function than the block: relative error .*e-04, at "
        r"most .*e-05 is rounding$",
    ):
        nbcompile.fuse(giant)
    assert not sites(nbcompile.fuse(giant, proof=False))


def test_a_shift_that_is_lost_names_its_site(monkeypatch: pytest.MonkeyPatch) -> None:
    giant = linear(Net())
    monkeypatch.setattr(contract_sites, "_absorbers", lambda *_: ())
    with pytest.raises(PostconditionError, match=r"^fuse: what is to stand for 'conv' is another function"):
        nbcompile.fuse(giant)


def test_a_shift_that_one_of_two_norms_takes_names_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    giant, right = linear(Net()), contract_sites._absorbers
    monkeypatch.setattr(contract_sites, "_absorbers", lambda *given: right(*given)[:1])
    with pytest.raises(
        PostconditionError,
        match=r"^fuse: the tiny network gives another output than the giant: relative error .*, at most 1e-05 is "
        r"rounding; the shift of 'conv' went into 'norm\.running_mean', 'other\.running_mean', and other code reads "
        r"'conv', too: fuse the model as expand returned it \(proof=False leaves this check out\)$",
    ):
        nbcompile.fuse(giant)


class ReadTwice(Net):
    """What became of Net after it was expanded: its code reads the layer, too, and its graph does not say so."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) if x.mean() > 1e9 else (super().forward(x), self.conv(x))


def test_other_code_that_reads_a_shifted_layer_is_seen_by_the_output() -> None:
    giant = linear(Net())
    giant.__class__ = ReadTwice
    with pytest.raises(PostconditionError, match=r"the shift of 'conv' went into '.*', and other code reads 'conv'"):
        nbcompile.fuse(giant)


class Chooses(Net):
    """Draws, ranks and selects: rounding makes it another output."""

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x) + 1e-3 * torch.rand(7, 5)
        chosen = y.flatten()[(y * 1e6).flatten().long() % 2 == 0]
        return {"order": y.flatten().argsort(), "chosen": chosen, "y": y}


class Chaos(Net):
    """Enlarges what rounding does."""

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y, (y * 1e4 / y.abs().max()).sin() if y.dtype != torch.float64 else y


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_rounding_alone_makes_of_a_network_is_no_reason(dtype: torch.dtype) -> None:
    for model in (Net(), Chooses(), Chaos()):
        giant = linear(model).to(dtype)
        for block in sites(giant).values():
            block.slope.fill_(1 - 2**-24)  # as averages round it
        before = torch.get_rng_state()
        assert not sites(nbcompile.fuse(giant))
        assert torch.equal(before, torch.get_rng_state())


def test_forced_it_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    giant = linear(Net())
    next(iter(sites(giant).values())).slope.fill_(0.5)
    monkeypatch.setattr("nbcompile.fusion.require_contracted", None)
    assert not sites(nbcompile.fuse(giant, force=True))


def test_a_collapsed_giant_is_compared_by_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    giant = nbcompile.collapse_(linear(Net()))
    assert not sites(nbcompile.fuse(giant))
    right = Expanded.as_one_layer
    monkeypatch.setattr(Expanded, "as_one_layer", lambda self, x: 2 * right(self, x))
    assert not sites(nbcompile.fuse(giant))


def test_a_giant_inside_of_another_model() -> None:
    giant = nn.Sequential(nn.Identity(), linear(Net()))
    remember(giant, Origin((TensorSpec((2, 3, 7, 5)),)))
    assert not sites(nbcompile.fuse(giant))


def test_linear_layers_and_more_axes() -> None:
    for model, x in (
        (nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8)), torch.randn(5, 6)),
        (nn.Sequential(nn.Conv1d(3, 8, 3, bias=False), nn.BatchNorm1d(8)), torch.randn(2, 3, 9)),
        (nn.Sequential(nn.ConvTranspose3d(3, 8, 2, bias=False), nn.BatchNorm3d(8)), torch.randn(2, 3, 3, 4, 5)),
    ):
        giant = scramble_(nbcompile.expand(scramble_(model), x, "all"), 1)
        for block in sites(giant).values():
            block.slope.fill_(1)
        assert not sites(nbcompile.fuse(giant))


def test_a_given_example_will_do_and_without_one_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    giant = linear(Net())
    del giant.__dict__["_nbcompile_origin"]
    with caplog.at_level(logging.WARNING, "nbcompile"):
        nbcompile.fuse(giant, example_input=X)
        nbcompile.fuse(giant, proof=False)
        assert not caplog.messages
        nbcompile.fuse(giant)
    assert caplog.messages == ["fuse: not proven by running it, for want of an example input"]


def test_an_example_on_which_it_does_not_run() -> None:
    giant = linear(Net())
    with pytest.raises(PreconditionError, match="Net does not run on the example input"):
        nbcompile.fuse(giant, example_input=torch.randn(2, 5, 7, 5))


@pytest.mark.parametrize("step", [1e-3, 1e-5, 1e-7])
def test_a_channel_that_is_silent_on_the_example_is_rounding(step: float) -> None:
    """What is left of it is the block's small constant, which goes into a mean of 0.5: digits are lost there."""
    torch.manual_seed(0)
    first, depthwise = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 1, 1, groups=6, bias=False)
    model = scramble_(nn.Sequential(first, nn.ReLU(), depthwise, nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1)))
    with torch.no_grad():
        first.bias[:2] = -50  # type: ignore[index]
    giant = nbcompile.expand(model.eval(), X, ["2"], preserve=True)
    block = sites(giant)["2"]
    assert block.spec.absorbers
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(step * torch.randn_like(parameter))
        block.slope.fill_(1)
        assert not giant.get_submodule("1")(giant.get_submodule("0")(X))[:, :2].any()
        wanted = giant(X)
    torch.testing.assert_close(nbcompile.fuse(giant)(X), wanted, rtol=1e-4, atol=1e-5)
