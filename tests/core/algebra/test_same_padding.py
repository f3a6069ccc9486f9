import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from nbcompile.core.algebra.same_padding import is_same, pads_itself, same_padding
from nbcompile.core.layers import lift


@pytest.mark.parametrize(
    ("size", "reach", "stride", "sides"),
    [
        (144, 2, 2, (0, 1)),  # the stem of every MobileNet at an even size: TensorFlow pads only at the end
        (145, 2, 2, (1, 1)),
        (144, 3, 2, (1, 1)),
        (224, 6, 2, (2, 3)),
        (7, 2, 1, (1, 1)),
        (8, 0, 2, (0, 0)),
    ],
)
def test_what_tensorflow_pads(size: int, reach: int, stride: int, sides: tuple[int, int]) -> None:
    assert same_padding(size, reach, stride) == sides


@settings(deadline=None)
@given(size=st.integers(3, 12), kernel=st.integers(1, 5), stride=st.integers(1, 4), padding=st.integers(0, 3))
def test_is_same_where_the_outputs_are(size: int, kernel: int, stride: int, padding: int) -> None:
    x, weight = torch.randn(1, 1, size), torch.randn(1, 1, kernel)
    low, high = same_padding(size, kernel - 1, stride)
    theirs = F.conv1d(F.pad(x, (low, high)), weight, stride=stride)
    padded = F.pad(x, (padding, padding))
    if padded.shape[-1] < kernel:
        return
    ours = F.conv1d(padded, weight, stride=stride)
    equal = ours.shape == theirs.shape and torch.allclose(ours, theirs)
    assert is_same(size, kernel - 1, stride, (padding, padding)) == equal


@pytest.mark.parametrize(
    ("layer", "itself"),
    [
        (nn.Conv2d(1, 1, 3, 2, 1), False),
        (nn.Conv2d(1, 1, 3, 1, 1), True),
        (nn.Conv2d(1, 1, 3, 2), True),  # VALID
        (nn.Conv2d(1, 1, (1, 3), 1, (0, 1)), True),
        (nn.Conv2d(1, 1, 3, 1, 2), False),
        (nn.Conv2d(1, 1, 3, 1, 1, padding_mode="reflect"), False),
    ],
)
def test_what_a_convolution_pads_itself(layer: nn.Module, itself: bool) -> None:
    assert pads_itself(lift(layer, torch.float32, 2).geometry, (8, 6)) is itself
