"""Outputs are judged part by part; what a network rounds itself is measured there, and never more than a ceiling."""

import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.errors import PreconditionError
from nbcompile.core.judging.compared import CEILING, Allowed
from nbcompile.core.judging.judgment import judge
from nbcompile.core.judging.rounding import ROUNDINGS, own_rounding

Y = torch.rand(9, 6, generator=torch.Generator().manual_seed(0)) - 0.5


class Cancels(nn.Module):
    """Loses what is small beside ``by``."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.by) - self.by


class Gives(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def judged(wanted: Tensor, given: Tensor) -> str:
    """The part that fails; nothing if none does."""
    judgment = judge(Gives(), [((wanted,), wanted)], [given])
    assert judgment.passed == (judgment.error <= judgment.limit.error)
    return "" if judgment.passed else judgment.part or "all"


@pytest.fixture
def x() -> Tensor:
    return torch.rand(7, 5)


def test_a_little_more_is_allowed_without_a_word_and_much_more_with_one(x: Tensor) -> None:
    for by, least in ((300.0, 1e-5), (2e3, 1e-4)):
        model = Cancels(by)
        own = own_rounding(model, [((x,), model(x))])
        judgment = judge(model, [((x,), model(x))], [x])
        assert judgment.passed
        assert judgment.limit.error == pytest.approx(ROUNDINGS * own, rel=1e-3)
        assert least < judgment.limit.error < 10 * least
        assert judgment.limit.why.startswith("the network's own run is ") == (least == 1e-4)
        assert judgment.limit.telling
    assert str(judgment.limit) == f"{judgment.limit.error:.0e} ({judgment.limit.why})"


@pytest.mark.parametrize(("dtype", "by"), [(torch.float32, 1e6), (torch.float16, 1e3), (torch.bfloat16, 1e2)])
def test_there_is_a_ceiling(dtype: torch.dtype, by: float, x: Tensor) -> None:
    one, x = Cancels(by), x.to(dtype)
    judgment = judge(one, [((x,), one(x))], [x + 2])
    assert not judgment.passed
    assert judgment.limit.error == CEILING[dtype] < 1
    assert judgment.limit.why.endswith("more is not told from a fault")
    assert not judgment.limit.telling


def test_integers_are_let_nothing() -> None:
    words = torch.arange(4) + 2**60
    assert judge(Gives(), [((words,), words)], [words]).limit == Allowed(0.0)
    assert judged(words, words + 1) == "all"  # float64 does not tell them apart


def test_float64_has_its_own_last_digits() -> None:
    x = torch.rand(7, 5, dtype=torch.float64)
    one = Cancels(1e5)
    assert not judge(one, [((x,), one(x))], [x]).passed  # inputs move by their own digits
    scaled = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)).double().requires_grad_(False)
    scaled.register_buffer("slope", torch.ones(()))  # float32, as a giant's are
    scaled[0].bias += 1e4
    scaled[1].bias -= scaled[1](torch.full((5,), 1e4, dtype=torch.float64))
    wanted, merged = scaled(x), x @ (scaled[1].weight @ scaled[0].weight).T
    merged += scaled[1](scaled[0].bias)
    judgment = judge(scaled, [((x,), wanted)], [merged])
    assert judgment.error > 1e-12
    assert judgment.passed
    assert not judge(scaled, [((x,), wanted)], [merged + 1e-9]).passed


def test_what_is_small_is_judged_by_itself() -> None:
    small = torch.cat([Y[:, :2] * 1e5, Y[:, 2:]], 1)
    wrong = small.clone()
    wrong[:, 4] += 0.01
    assert judged(small, wrong) == "channels 2 to 5"
    assert judged(small[None], wrong[None]) == "places 2 to 5 of dimension 2"
    stepped = Y * torch.logspace(0, 10, 6)  # 100 times each
    wrong = stepped.clone()
    wrong[:, 0] += 0.01
    assert judged(stepped, wrong) == "channel 0"
    masked = Y.where(Y.median() > Y, torch.tensor(-1e9))
    wrong = masked.where(masked != masked.max(), masked.max() * 1.01)
    assert judged(masked, wrong)
    assert judged(Y * 1e-2 + 1000, (Y * 1e-2 + 1000).flip(1))  # a constant hides it
    one = Y.clone()
    one[3] *= 1e-4
    wrong = one.clone()
    wrong[3] *= 1.01
    assert judged(one, wrong) == "sample 3"


def test_rounding_of_what_is_small_is_no_fault(x: Tensor) -> None:
    """What cancels, beside what is large: as far from its exact value as it is large itself."""

    class Both(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x * 1e6, (x + 1e4) - 1e4, (x + 1e5) - (x + 1e5).mean(1, keepdim=True) * 0 - 1e5], 1)

    both = Both()
    wanted = both(x)
    exact = both(x.double()).float()
    assert judge(both, [((x,), wanted)], [exact]).passed
    exact[:, 6] += 0.5
    assert not judge(both, [((x,), wanted)], [exact]).passed


def test_outputs_do_not_lend_each_other_their_tolerance(x: Tensor) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return x, x.half(), (x * 1e9).long()

    cases = [((x,), Two()(x))]
    half, whole = cases[0][1][1:]
    assert judge(Two(), cases, [(x, half * 1.002, whole)]).passed
    assert judge(Two(), cases, [(x * 1.002, half, whole)]).place == " in output[0]"
    assert judge(Two(), cases, [(x, half, whole + 1)]).place == " in output[2]"
    with pytest.raises(PreconditionError, match=r"different dtype.*: output\[1\] is float32 against float16$"):
        judge(Two(), cases, [(x, x, whole)])


def test_not_finite_where_the_other_is_fails() -> None:
    wrong = Y.clone()
    wrong[0, 0] = torch.nan
    assert judge(Gives(), [((Y,), Y)], [wrong]).passed is False
    assert judge(Gives(), [((wrong,), wrong)], [wrong]).passed
