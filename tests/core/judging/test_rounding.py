"""How much a network's own arithmetic rounds, in any dtype."""

import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.judging.rounding import SWAYS, own_rounding, swayed_outputs
from nbcompile.core.numerics import relative_error


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Differs(nn.Module):
    """A small difference of large numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.full((3,), 1e6)), nn.Parameter(torch.full((3,), 1e6 - 1))

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        return (x * (self.a - self.b))[rows]


def test_random_numbers_are_no_rounding() -> None:
    """One seed gives other numbers in float64 than in float32."""
    x = torch.rand(7, 5)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert own_rounding(Noise(), [((x,), Noise()(x))]) == 0
    assert not torch.equal(before, torch.get_rng_state())  # by the call above alone


class InTurn(nn.Module):
    """Adds a little at every other call."""

    odd = False

    def forward(self, x: Tensor) -> Tensor:
        self.odd = not self.odd
        return x + 1e-4 * self.odd


@pytest.mark.parametrize("calls", [1, 2, 3, 4])
def test_outputs_that_come_in_turn_are_no_rounding(calls: int) -> None:
    model, x = InTurn(), torch.rand(7, 5)
    assert own_rounding(model, [((x,), model(x)) for _ in range(calls)]) == 0


def test_last_digits_move_an_output_in_float64_too() -> None:
    model, inputs = Differs().double(), (torch.rand(2, 3, dtype=torch.float64), torch.tensor([1, 0]))
    wanted, before = model(*inputs), model.a.detach().clone()
    moved = [relative_error(y, wanted) for y in swayed_outputs(model, inputs)]
    assert len(moved) == SWAYS
    assert 1e-10 < max(moved) < 1e-9  # 2.2e-16 of 1e6, once up and once down, is 4.4e-10
    assert own_rounding(model, [(inputs, wanted)]) == 0  # of its own copy
    assert torch.equal(model.a, before)
