import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from nbcompile.core.graph.channel_ranges import ChannelRange, channel_ranges
from nbcompile.core.numerics import relative_error
from nbcompile.core.tracing.capture import capture
from nbcompile.passes.absorb_bias import AbsorbBias
from nbcompile.testing import check_pass

X = torch.randn(3, 4, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Of the six channels the first two have a high bias."""

    def __init__(self, act: nn.Module | None = None, second: nn.Module | None = None, bias: float = 9) -> None:
        super().__init__()
        self.a, self.act = nn.Conv2d(4, 6, 3), act or nn.ReLU()
        self.b = second or nn.Conv2d(6, 5, 3)
        with torch.no_grad():
            self.a.bias[:2] = bias  # type: ignore[index]
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.act(self.a(x)))
        return y


class Both(Net):
    """Two layers read it."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        z: Tensor = self.b(y) + self.b2(y).mean()
        return z

    def __init__(self) -> None:
        super().__init__()
        self.b2 = nn.Conv2d(6, 2, 1).double()


def pass_for(model: nn.Module) -> tuple[fx.GraphModule, AbsorbBias]:
    gm = capture(model)
    return gm, AbsorbBias(channel_ranges(gm, [(X,)]))


@pytest.mark.parametrize(
    "model",
    [Net(), Net(nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3, groups=3, bias=False)), Net(nn.ReLU6(), bias=3.0), Both()],
)
def test_absorbs_on_the_calibration_set(model: nn.Module) -> None:
    gm, absorb = pass_for(model)
    high = next(iter(absorb.ranges.values())).high
    result = check_pass(absorb, model, X, repeatable=False)
    assert result.rewritten == ("a",)
    assert " in 2 channels" in result.how[0]
    absorb(gm)
    again = channel_ranges(gm, [(X,)])
    assert float(next(iter(again.values())).high[0]) < float(high[0]) - 1
    assert not AbsorbBias(again)(gm).modified


def test_other_data_may_give_another_result() -> None:
    model = Net()
    gm, absorb = pass_for(model)
    absorb(gm)
    assert relative_error(gm(X), model(X)) <= 1e-12
    assert relative_error(gm(20 * X), model(20 * X)) > 1e-3


class Read(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        z: Tensor = self.b(y) + y.mean()
        return z


class Shared(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        z: Tensor = self.b(y) + self.b(y.flip(2)).mean()
        return z


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(4, 6, 3).double()
        self.other.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(F.relu(self.a(x))) + self.other(x).mean()
        return y


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            Net(second=nn.Conv2d(6, 5, 3, padding=1)),
            "'b' reads it: the second layer pads with zeros but the first adds",
        ),
        (Read(), "'mean' reads it, which is no convolution or linear layer"),
        (Shared(), "'b' reads it: it is called 2 times"),
        (Tied(), "it shares a parameter with 'other.weight'"),
    ],
)
def test_leaves_alone_and_says_why(model: nn.Module, reason: str) -> None:
    result = check_pass(pass_for(model)[1], model, X)
    assert [skip.name for skip in result.skipped] == ["a"]
    assert result.skipped[0].reason.startswith(reason)


@pytest.mark.parametrize("model", [Net(bias=0), Net(nn.ReLU6(), bias=9), Net(nn.LeakyReLU()), Net(nn.Hardtanh(-9, 9))])
def test_nothing_to_absorb(model: nn.Module) -> None:
    result = check_pass(pass_for(model)[1], model, X)
    assert (result.rewritten, result.skipped) == ((), ())


def test_which_channels_have_something_to_absorb() -> None:
    """A clip that is only just reached cuts nothing; a thousandth of the range is not worth it."""
    low, high = torch.tensor([1.0, 0.0, -1.0, 0.0059, 0.0061, 2.0]), torch.tensor([6.0, 6.0, 6.0, 6.0, 6.0, 6.001])
    result = AbsorbBias({"act": ChannelRange(low, high)})(capture(Net(nn.ReLU6())))
    assert result.how == ("a: up to 1 in 2 channels",)
    plain = AbsorbBias({"act": ChannelRange(low, high)})(capture(Net(nn.ReLU())))
    assert plain.how == ("a: up to 2 in 3 channels",)


def test_layers_are_called_by_their_qualified_names() -> None:
    model = nn.Sequential(Shared())
    result = check_pass(pass_for(model)[1], model, X)
    assert [(skip.name, skip.reason) for skip in result.skipped] == [("0.a", "'0.b' reads it: it is called 2 times")]
    model = nn.Sequential(Net())
    result = check_pass(pass_for(model)[1], model, X, repeatable=False)
    assert result.rewritten == ("0.a",)
    assert result.how[0].startswith("0.a: up to ")
