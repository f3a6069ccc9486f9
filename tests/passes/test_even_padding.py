from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from nbcompile.core.algebra.same_padding import same_padding
from nbcompile.core.cost import cost
from nbcompile.passes.even_padding import EvenPadding
from nbcompile.testing import check_pass


def x(*sizes: int, channels: int = 4) -> Tensor:
    return torch.randn(2, channels, *sizes, dtype=torch.float64)


def conv(*args: Any, **options: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 8, *args, **options)).double()


def runs_same(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """As TFLite runs it: with the padding that SAME gives."""
    axes = zip(x.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True)
    sides = [same_padding(n, d * (k - 1), s) for n, k, s, d in axes]
    padded = F.pad(x, [p for low_high in reversed(sides) for p in low_high])
    return F.conv2d(padded, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)


@pytest.mark.parametrize(
    ("options", "sizes", "kernel"),
    [
        ({"kernel_size": 3, "stride": 2, "padding": 1}, (8, 6), (4, 4)),
        ({"kernel_size": 3, "stride": 2, "padding": 1, "groups": 4, "bias": False}, (8, 7), (4, 3)),
        ({"kernel_size": 5, "stride": 2, "padding": 2}, (7, 10), (5, 6)),
        ({"kernel_size": 7, "stride": 2, "padding": 3}, (12, 12), (8, 8)),
        ({"kernel_size": 3, "stride": (2, 1), "padding": 1}, (8, 8), (4, 3)),
        ({"kernel_size": 3, "stride": 3, "padding": 1}, (9, 8), (5, 4)),
        ({"kernel_size": 3, "stride": 4, "padding": 1}, (8, 5), (6, 3)),
    ],
)
def test_gets_zero_taps(options: dict[str, Any], sizes: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    model = conv(**options)
    result = check_pass(EvenPadding((x(*sizes),)), model, x(*sizes))
    layer = result.gm.get_submodule("0")
    assert isinstance(layer, nn.Conv2d)
    assert (result.rewritten, layer.kernel_size) == (("0",), kernel)
    value = x(*sizes)
    torch.testing.assert_close(runs_same(layer, value), model(value), rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(4, 17), kernel=st.integers(1, 7), stride=st.integers(1, 4), padding=st.integers(0, 3),
    dilation=st.integers(1, 2),
)  # fmt: skip
def test_no_pad_is_needed_or_the_reason_is_given(
    size: int, kernel: int, stride: int, padding: int, dilation: int
) -> None:
    value = x(size, size)
    if size + 2 * padding <= dilation * (kernel - 1):
        return
    model = conv(kernel, stride, padding, dilation)
    result = check_pass(EvenPadding((value,)), model, value)
    layer = result.gm.get_submodule("0")
    assert isinstance(layer, nn.Conv2d)
    if not result.skipped and padding:
        torch.testing.assert_close(runs_same(layer, value), model(value), rtol=1e-12, atol=1e-12)
    for skip in result.skipped:
        assert "it needs a PAD operator" in skip.reason


def test_one_axis_and_three() -> None:
    line = nn.Sequential(nn.Conv1d(4, 8, 3, 2, 1)).double()
    assert check_pass(EvenPadding((x(8),)), line, x(8)).rewritten == ("0",)
    solid = nn.Sequential(nn.Conv3d(4, 8, 3, 2, 1)).double()
    assert check_pass(EvenPadding((x(4, 5, 6),)), solid, x(4, 5, 6)).rewritten == ("0",)


def test_says_what_is_executed_and_what_counts() -> None:
    value = x(8, 6)
    result = check_pass(EvenPadding((value,)), conv(3, 2, 1), value)
    logical, executed = 4 * 3 * 4 * 8 * 9, 4 * 3 * 4 * 8 * 16
    assert result.how == (f"0: 3×3 as 4×4 on 8×6, {executed:,} MACs executed for the layer's {logical:,}",)
    assert cost(result.gm, value).macs == executed
    assert cost(conv(3, 2, 1), value).macs == logical


class Twice(nn.Module):
    """The same layer on maps of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.conv(x))
        return y


class Tied(Twice):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(4, 4, 3, padding=1)
        self.other.weight = self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.other(self.conv(x))
        return y


class ReadElsewhere(Twice):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x) * self.conv.weight.mean()
        return y


@pytest.mark.parametrize(
    ("model", "size", "reason"),
    [
        (conv(3, 2, 1, padding_mode="reflect"), 8, "it pads by 'reflect', which no TFLite convolution does"),
        (conv(3, 1, 2), 8, "it gives 10 positions of 8, SAME gives 8: it needs a PAD operator"),
        (
            conv(3, 2, 2, dilation=2), 8,
            "its taps are 2 positions apart, and 1 more would be needed: it needs a PAD operator",
        ),
        (Twice(), 10, "it is called on maps of several sizes, 5×5 and 10×10, which need different taps"),
        (Tied(), 8, "it shares a parameter with 'other.weight'"),
        (ReadElsewhere(), 8, "other code reads its weight directly"),
    ],
)  # fmt: skip
def test_leaves_alone_and_says_why(model: nn.Module, size: int, reason: str) -> None:
    result = check_pass(EvenPadding((x(size, size),)), model.double(), x(size, size))
    assert [skip.reason for skip in result.skipped] == [reason]
    assert not result.modified


def test_what_is_same_already_is_no_matter() -> None:
    for model, size in ((conv(3, 2, 1), 7), (conv(3, 1, 1), 8), (conv(1, 2), 8), (conv(3, 2), 8)):
        result = check_pass(EvenPadding((x(size, size),)), model, x(size, size))
        assert (result.rewritten, result.skipped) == ((), ())


def test_the_same_layer_on_equal_sizes() -> None:
    class Siamese(Twice):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x) + self.conv(x.flip(-1))
            return y

    result = check_pass(EvenPadding((x(8, 8),)), Siamese().double(), x(8, 8))
    assert result.rewritten == ("conv",)
    assert "9,216 MACs" not in result.how[0]
    assert f"the layer's {2 * 16 * 144:,}" in result.how[0]
