"""How much a network's own arithmetic rounds, in any dtype."""

import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.judging.judgment import judge
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


class Gated(nn.Module):
    """A channel that a gate closes to 1e-9."""

    def __init__(self, gate: nn.Module, closed: float) -> None:
        super().__init__()
        self.gate, self.opened = gate, nn.Parameter(torch.tensor([2.0, closed]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.opened * torch.ones_like(x))


@pytest.mark.parametrize(("gate", "at"), [(nn.Sigmoid(), -20.0), (nn.SiLU(), -20.0), (nn.GELU(), -5.2)])
def test_a_gate_rounds_by_where_it_is_open(gate: nn.Module, at: float) -> None:
    """ONNX Runtime has 0 where torch has sigmoid(-20) = 2e-9."""
    model, x = Gated(gate, at).eval(), torch.randn(5, 2)
    wanted = model(x).detach()
    assert float(wanted[:, 1].abs().max()) < 1e-6
    closed = wanted * torch.tensor([1.0, 0.0])
    assert judge(model, [((x,), wanted)], [closed]).passed
    ajar = closed + x * torch.tensor([0.0, 1e-5 if isinstance(gate, nn.Sigmoid) else 2e-4])
    assert not judge(model, [((x,), wanted)], [ajar]).passed


class AboveAConstant(nn.Module):
    """What varies by 0.1 about 100, beside ordinary values, and random numbers."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.stack((x * 0.1 + 100, x * 1000), 1), torch.rand(3)


def test_numbers_round_in_networks_that_draw_random_ones_too() -> None:
    model, x = AboveAConstant(), torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    wanted, drawn = model(x)
    digit = 100 * torch.finfo(torch.float32).eps * torch.tensor([1.0, 0.0])[:, None]
    assert judge(model, [((x,), (wanted, drawn))], [(wanted + digit, drawn)]).passed
    assert not judge(model, [((x,), (wanted, drawn))], [(wanted + 20 * digit, drawn)]).passed
