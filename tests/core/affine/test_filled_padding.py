from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nbcompile.core.affine.primitive import Primitive
from tests.core.affine.lifts import Written, found

RING = torch.tensor([1.0, 0.0, -2.0, 3.0], dtype=torch.float64)
NOT_WHOLE = "'pad' is written to, but not its whole ring with one value a channel"


def whole(y: Tensor, ring: Any, p: int = 1) -> None:
    y[:, :, :p, :] = ring
    y[:, :, -p:, :] = ring
    y[:, :, :, :p] = ring
    y[:, :, :, -p:] = ring


def padded(write: Callable[[Tensor, Any, Tensor], Any], sides: tuple[int, ...] = (1, 1, 1, 1)) -> Any:
    """What the padding is lifted to, behind which ``write`` writes."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.pad(x, sides)
        write(y, m.ring.view(1, -1, 1, 1), x)
        return y

    return found(Written(forward, ring=RING))["pad"]


@pytest.mark.parametrize("p", [1, 2])
def test_a_whole_ring(p: int) -> None:
    one = padded(lambda y, ring, x: whole(y, ring, p), (p,) * 4)
    assert isinstance(one, Primitive)
    m = one.map(2, 4)
    assert (m.padding, len(one.parts)) == (((p, p), (p, p)), 4)
    assert m.pad_value is not None
    assert torch.equal(m.pad_value, RING)


def test_one_number_for_all_channels() -> None:
    for number in (2.5, 2):
        one = padded(lambda y, ring, x: whole(y, number))  # noqa: B023
        assert one.map(2, 4).pad_value.tolist() == [number] * 4


def test_zeros_are_a_plain_padding() -> None:
    for zero in (0, 0.0):
        assert padded(lambda y, ring, x: whole(y, zero)).map(2, 4).pad_value is None  # noqa: B023


def test_nothing_written() -> None:
    assert padded(lambda *_: None).map(2, 4).geometry.filled is False


def no_side(y: Tensor, ring: Any, x: Tensor) -> None:
    y[:, :, :0] = ring


def three_sides(y: Tensor, ring: Any, x: Tensor) -> None:
    y[:, :, :1, :] = ring
    y[:, :, -1:, :] = ring
    y[:, :, :, :1] = ring


def too_wide(y: Tensor, ring: Any, x: Tensor) -> None:
    whole(y, ring)
    y[:, :, :2] = ring


def two_values(y: Tensor, ring: Any, x: Tensor) -> None:
    whole(y, ring)
    y[:, :, :1, :] = ring * 2


def of_one_sample(y: Tensor, ring: Any, x: Tensor) -> None:
    whole(y, ring)
    y[0, :, :1, :] = 7.0


def by_a_shape_that_does_not_fit(y: Tensor, ring: Any, x: Tensor) -> None:
    y[:, :, :1, :] = ring.view(2, 2)


@pytest.mark.parametrize(
    "write",
    [no_side, three_sides, too_wide, two_values, of_one_sample, by_a_shape_that_does_not_fit],
)
def test_what_is_no_ring(write: Callable[[Tensor, Any, Tensor], None]) -> None:
    assert padded(write) == NOT_WHOLE


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_values_that_are_not_finite(value: float) -> None:
    assert padded(lambda y, ring, x: whole(y, value)) == NOT_WHOLE


def test_a_padding_by_nothing() -> None:
    assert padded(no_side, (0, 0, 0, 0)) == NOT_WHOLE


def test_values_of_the_input() -> None:
    assert padded(lambda y, ring, x: whole(y, x.mean())) == "'pad' is filled with values that depend on the input"


def test_read_before_it_is_filled() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.pad(x, (1, 1, 1, 1))
        early = y * 2
        whole(y, 3.0)
        return y + early.sum()

    assert found(Written(forward))["pad"] == "'pad' is read before it is filled"
