from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.affine.to_layer import to_layer
from nbcompile.core.algebra import NotExact
from tests.core.affine.lifts import X, last, primitive

Forward = Callable[[Any, Tensor], Any]
NO_CROP = "^'getitem' cannot be seen to crop a map: fuse with an example_input$"
NO_CUT = r"^'getitem.*' cannot be seen to cut channels: fuse with an example_input$"


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: x[:, 1:3],
        lambda m, x: x[:, ::2],
        lambda m, x: x[:, -1:],
        lambda m, x: x[:, 1:3, :, :],
        lambda m, x: x[:, :],
        lambda m, x: x.chunk(3, 1)[1],
        lambda m, x: torch.chunk(x, 2, dim=1)[0],
        lambda m, x: torch.chunk(x, dim=1, chunks=3)[0],
        lambda m, x: x.split(split_size=3, dim=1)[0],
        lambda m, x: x.split(3, 1)[1],
        lambda m, x: torch.split(x, [1, 2, 1], 1)[-2],
        lambda m, x: torch.tensor_split(x, (1, 3), 1)[1],
        lambda m, x: x[:, :, 1:-2],
        lambda m, x: x[:, :, 1:, :-1],
        lambda m, x: x[:, :, :, 2:],
    ],
)
def test_slices(forward: Forward) -> None:
    one = primitive(forward, X)
    m = one.map(2, 4)
    assert (one.name, one.constants, one.layer, one.inputs) == (one.node.name, 0, False, None)
    assert one.geometry(2, 4) == m.geometry
    torch.testing.assert_close(to_layer(m, X)(X), forward(None, X), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: x[0],
        lambda m, x: x[1:, :2],
        lambda m, x: x[:, 1],
        lambda m, x: x[:, None],
        lambda m, x: x[..., 1:],
        lambda m, x: x[:, 1:2, 1:2],
        lambda m, x: x[:, :, 1:3],  # how much it takes off depends on the size
        lambda m, x: x[:, :, -3:],
        lambda m, x: x[:, :, :0],
        lambda m, x: x[:, :, ::2],
        lambda m, x: x[:, : x.shape[1] // 2],
        lambda m, x: x.chunk(2)[0],
        lambda m, x: x.chunk(2, -1)[0],
        lambda m, x: m.modules_[0](x),
    ],
)
def test_other_slices(forward: Forward) -> None:
    assert last(forward, X, modules_=nn.ModuleList([nn.Identity()])) is None


def test_taking_all_channels_takes_each_by_itself() -> None:
    """Else what is merged with it would be dense."""
    for forward, groups in ((lambda m, x: x[:, :], 4), (lambda m, x: x[:, :4], 4), (lambda m, x: x[:, :3], 1)):
        assert primitive(forward, X).geometry(2, 4).groups == groups


def test_cutting_needs_shapes() -> None:
    """Dimension 1 is the channels only of a batch of maps."""
    cut = lambda m, x: x[:, 1:3]  # noqa: E731
    for known in (None, X[0], X[:, :3]):
        with pytest.raises(NotExact, match=NO_CUT):
            primitive(cut, known).geometry(2, 4)
    with pytest.raises(NotExact, match=NO_CUT):
        primitive(lambda m, x: x.chunk(2, 1)[0]).geometry(2, 4)
    assert primitive(cut, X).cuts


def test_cropping_some_of_the_axes_needs_shapes() -> None:
    """``x[:, :, 1:]`` crops the first axis of a batch of maps, and the second of a map without a batch."""
    some = lambda m, x: x[:, :, 1:]  # noqa: E731
    for known in (None, X[0]):
        with pytest.raises(NotExact, match=NO_CROP):
            primitive(some, known).geometry(2, 4)
    assert primitive(some, X).geometry(2, 4).kernel == (2, 1)
    assert primitive(lambda m, x: x[:, :, 1:, 1:]).geometry(2, 4).kernel == (2, 2)


def test_cropping_more_axes_than_there_are() -> None:
    with pytest.raises(NotExact, match=NO_CROP):
        primitive(lambda m, x: x[:, :, 1:, 1:], X).geometry(1, 4)
