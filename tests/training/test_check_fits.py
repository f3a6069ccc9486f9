from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nbcompile import UsageError
from nbcompile.core.example import Origin, TensorSpec, remember
from nbcompile.training.check_fits import check_fits
from nbcompile.training.data.digits import load_digits
from nbcompile.training.data.imagefolder import load_imagefolder

Net = Callable[..., nn.Module]
WHO = "the teacher big.pt"


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return x, x


class Picky(nn.Module):
    """As vision transformers and detectors are: they assert, where layers would raise."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.weight, self.error = nn.Parameter(torch.ones(1)), error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AssertionError("Input height (8) doesn't match model (224)."), r"Input height \(8\) doesn't match model"),
        (AssertionError(), r"\(AssertionError\)"),
        (KeyError("targets"), "targets"),
        (NotImplementedError("two\nlines"), r"\(two\)"),
    ],
)
def test_whatever_a_network_raises_is_told(error: Exception, said: str) -> None:
    with pytest.raises(UsageError, match=rf"^Picky cannot take the images of digits, 1×8×8 .*{said}"):
        check_fits(Picky(error), load_digits())


def test_what_fits_is_left_as_it_was(net_for: Net) -> None:
    net = net_for()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    check_fits(net.eval(), load_digits())
    check_fits(net, load_digits(), WHO)
    assert not net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("options", "network", "teacher"),
    [
        (
            {"num_classes": 7},
            r"^Sequential gives outputs of shape \(7,\), but digits has 10 classes: write "
            r"MODEL\?num_classes=10&in_channels=1, as in nbcompile:dscnn\?num_classes=10&in_channels=1$",
            r"^the teacher big.pt \(Sequential\) gives outputs of shape \(7,\), but digits has 10 classes: it must "
            r"have been trained on digits, or on the same classes$",
        ),
        (
            {"in_channels": 3},
            r"^Sequential cannot take the images of digits, 1×8×8 \(.*\): write MODEL\?num_classes=10&in_channels=1, ",
            r"^the teacher big.pt \(Sequential\) cannot take the images of digits, 1×8×8 \(.*\): it must have been ",
        ),
    ],
)
def test_a_teacher_is_called_so(net_for: Net, options: dict[str, int], network: str, teacher: str) -> None:
    net, data = net_for(**options), load_digits()
    with pytest.raises(UsageError, match=network):
        check_fits(net, data)
    with pytest.raises(UsageError, match=teacher):
        check_fits(net, data, WHO)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (
            {"num_classes": 7, "in_channels": 3},
            r"MODEL\?num_classes=2, as in nbcompile:dscnn\?num_classes=2&in_channels=3$",
        ),
        ({"num_classes": 2, "in_channels": 1}, r"MODEL\?num_classes=2&in_channels=3, or choose another input_size$"),
    ],
)
def test_the_advice_names_the_channels_where_they_are_others(
    net_for: Net, folder: Path, options: dict[str, int], advice: str
) -> None:
    data = load_imagefolder(str(folder), 16)
    with pytest.raises(UsageError, match=advice):
        check_fits(net_for(**options), data)
    check_fits(net_for(num_classes=2, in_channels=3), data)


@pytest.mark.parametrize(
    ("home", "advice"),
    [
        ("timm", r"write MODEL\?num_classes=10&in_chans=1, or"),
        ("torchvision", r"write timm:NAME\?num_classes=10&in_chans=1 \(torchvision's networks take 3 channels\), or"),
        ("nbcompile", r"write MODEL\?num_classes=10&in_channels=1, or"),
    ],
)
def test_the_advice_has_the_words_of_the_library(net_for: Net, home: str, advice: str) -> None:
    net = net_for(in_channels=3)
    remember(net, Origin((TensorSpec((1, 3, 8, 8)),), f"{home}:net"))
    with pytest.raises(UsageError, match=advice):
        check_fits(net, load_digits())


def test_refuses_no_parameters() -> None:
    with pytest.raises(UsageError, match=r"^Flatten has no parameters: there is nothing to train$"):
        check_fits(nn.Flatten(), load_digits())
    with pytest.raises(UsageError, match=r"^the teacher big.pt \(Flatten\) has no parameters: .* to learn from$"):
        check_fits(nn.Flatten(), load_digits(), WHO)


def test_refuses_a_network_of_which_nothing_learns(net_for: Net) -> None:
    net = net_for().requires_grad_(False)
    with pytest.raises(UsageError, match=r"^Sequential is frozen, no parameter of it requires a gradient: there is no"):
        check_fits(net, load_digits())
    check_fits(net, load_digits(), WHO)


@pytest.mark.parametrize("who", [None, WHO])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_refuses_other_weights_than_float32(net_for: Net, dtype: torch.dtype, who: str | None) -> None:
    with pytest.raises(
        UsageError, match=rf"^'0\.weight' of .*Sequential\)? is {str(dtype)[6:]}, and images are float32: "
    ):
        check_fits(net_for().to(dtype), load_digits(), who)


def test_refuses_a_pair_of_outputs() -> None:
    with pytest.raises(UsageError, match=r"^Pair gives a tuple in training, not a tensor of logits: switch its aux"):
        check_fits(Pair(2, 2), load_digits())
