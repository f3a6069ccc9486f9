"""What counts as rounding: measured on the network itself, and never more than a ceiling."""

import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.rounding import CEILING, ROUNDINGS, Allowed, allowed, own_rounding


class Cancels(nn.Module):
    """Loses what is small beside ``by``."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.by) - self.by


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(7, 5)


def test_within_the_tolerance_nothing_is_measured(x: Tensor) -> None:
    assert allowed(Cancels(1e6), [((x,), x)], error=1e-5) == Allowed(1e-5)
    assert allowed(Cancels(1e6), [], error=1.0).error == 0


def test_a_little_more_is_allowed_without_a_word_and_much_more_with_one(x: Tensor) -> None:
    small, large = (Cancels(by) for by in (100.0, 1e3))
    without, with_ = (allowed(one, [((x,), one(x))], error=1e-3) for one in (small, large))
    assert 1e-5 < without.error < 1e-4
    assert not without.why
    assert with_.error == ROUNDINGS * own_rounding(large, [((x,), large(x))])
    assert 1e-4 < with_.error < 1e-3
    assert with_.why.startswith("the network's own run is ")
    assert with_.telling
    assert str(with_) == f"{with_.error:.0e} ({with_.why})"


@pytest.mark.parametrize(("dtype", "by"), [(torch.float32, 1e6), (torch.float16, 1e3), (torch.bfloat16, 1e2)])
def test_there_is_a_ceiling(dtype: torch.dtype, by: float, x: Tensor) -> None:
    one, x = Cancels(by), x.to(dtype)
    most = allowed(one, [((x,), one(x))], error=2.0)
    assert most.error == CEILING[dtype] < 1
    assert most.why.endswith("more is not told from a fault")
    assert not most.telling


def test_integers_and_float64_are_let_nothing(x: Tensor) -> None:
    words = torch.arange(4)
    assert allowed(Cancels(1), [((words,), words)], error=1.0) == Allowed(0.0)
    one = Cancels(1e12)
    assert allowed(one, [((x.double(),), one(x.double()))], error=1.0) == Allowed(1e-12)


def test_random_numbers_are_no_rounding(x: Tensor) -> None:
    """One seed gives other numbers in float64 than in float32."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert own_rounding(Noise(), [((x,), Noise()(x))]) == 0
    assert not torch.equal(before, torch.get_rng_state())  # by the call above alone
