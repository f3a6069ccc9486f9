from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from nbcompile.core.errors import PreconditionError
from nbcompile.core.graph.nodes import render_graph
from nbcompile.core.tracing.capture import capture
from nbcompile.passes import RemoveIdentity
from nbcompile.testing import check_pass

X = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Every identity of eval mode, a gate that is none, and dropout that stays on in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.drop = nn.Sequential(nn.Dropout(0.5), nn.Dropout2d(0.5), nn.Identity())
        self.alpha = nn.AlphaDropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.alpha(self.drop(self.conv(x)))
        y = F.dropout(y, 0.5, self.training).permute(0, 2, 3, 1).contiguous().view(-1)
        return F.dropout(y, 0.0, True) + 1


def test_removes_and_keeps(golden: Callable[[str, str], None]) -> None:
    result = check_pass(RemoveIdentity(), Net(), X)
    assert result.rewritten == ("drop_0", "drop_1", "drop_2", "alpha", "dropout")
    golden("remove_identity", render_graph(result.gm))


def test_contiguous_stays_because_view_needs_it() -> None:
    gm = RemoveIdentity()(capture(Net().eval())).gm
    assert [node.target for node in gm.graph.find_nodes(op="call_method")] == ["permute", "contiguous", "view"]


class Guarded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(x, 0.5, self.training)
        return y.flip(3) if y.shape[3] > 3 else y


def test_guards_stay() -> None:
    gm = RemoveIdentity()(capture(Guarded().eval(), (X,))).gm
    assert torch.equal(gm(X), X.flip(3))
    with pytest.raises(PreconditionError, match=r"identity\.py:\d+ in forward: the network chooses its way"):
        gm(X[..., :3])


class ToOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.one(x)
        return y, F.relu(self.one(y))


def test_identities_that_are_outputs_or_called_twice() -> None:
    result = check_pass(RemoveIdentity(), ToOutput(), X)
    assert result.rewritten == ("one", "one_1")
    assert not list(result.gm.graph.find_nodes(op="call_module"))


def test_nothing_to_remove() -> None:
    assert not check_pass(RemoveIdentity(), nn.Conv2d(3, 4, 1), X).modified


class Straight(nn.Module):
    """Leaky ReLUs of every form: of slope 1, which are removed, and others, which are not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.leaky = nn.LeakyReLU(1.0)
        self.inplace = nn.LeakyReLU(1, inplace=True)
        self.prelu = nn.PReLU(4, init=1.0)
        self.one = nn.PReLU(init=1.0)
        self.almost = nn.LeakyReLU(1 - 2**-30)
        self.bent = nn.PReLU(4, init=1.0)
        self.bent.weight.data[3] = 0.5

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(self.prelu(self.inplace(self.leaky(self.conv(x)))))
        y = F.leaky_relu(F.prelu(y, self.prelu.weight), negative_slope=1.0)
        return self.bent(self.almost(y)) + F.leaky_relu(y, 1 / x.shape[1])


def test_leaky_relus_of_slope_one() -> None:
    result = check_pass(RemoveIdentity(), Straight().double(), X.double())
    assert result.rewritten == ("inplace", "leaky", "prelu", "one", "prelu_1", "leaky_relu")
    assert [node.target for node in result.gm.graph.find_nodes(op="call_module")] == ["conv", "almost", "bent"]


class Copies(nn.Module):
    """Leaky ReLUs of slope 1 whose own memory is needed: something is changed in place, or laid out anew."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = x * 2
        kept = F.leaky_relu(y, 1.0)
        y.mul_(3)
        given = F.leaky_relu(x, 1.0).sub_(5)  # else the caller's own tensor would change
        first, _ = y.chunk(2, 2)
        flat = F.leaky_relu(first, 1.0).view(-1)  # a part of a map has gaps
        part = F.leaky_relu(first, 1.0)
        part += 1
        return y, kept, given, flat, part


def test_leaky_relus_that_copy_stay() -> None:
    assert not check_pass(RemoveIdentity(), Copies(), X).modified


class Program(nn.Module):
    """Values are copied, looked at and changed in the order of ``steps``; those of ``read`` are read at the end."""

    def __init__(self, steps: list[tuple[str, int]], read: set[int]) -> None:
        super().__init__()
        self.steps, self.read = steps, read

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x * 2]
        for number, (step, chosen) in enumerate(self.steps):
            value = values[chosen % len(values)]
            if step == "change":
                value += number + 1
            else:
                values.append(F.leaky_relu(value, 1.0) if step == "copy" else value[:, :2])
        return tuple(value.sin() for value in (values[n % len(values)] for n in self.read))


STEPS = st.tuples(st.sampled_from(("copy", "copy", "change", "look")), st.integers(0, 9))


@settings(max_examples=100)
@given(st.lists(STEPS, min_size=1, max_size=7), st.sets(st.integers(0, 9), min_size=1, max_size=3))
def test_no_program_sees_that_a_copy_is_gone(steps: list[tuple[str, int]], read: set[int]) -> None:
    check_pass(RemoveIdentity(), Program(steps, read), X, repeatable=False)


def test_a_copy_of_a_copy_that_changes_stays() -> None:
    """Once the first is gone, its input is what changes."""
    program = Program([("copy", 0), ("copy", 1), ("change", 1)], read={2})
    assert check_pass(RemoveIdentity(), program, X).rewritten == ("leaky_relu",)


class ThenChanged(nn.Module):
    """What else changes in place: the result of a layer that nobody else reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.conv(x), 1.0)
        y += x
        return F.leaky_relu(x, 1.0) + y


def test_a_result_that_nobody_else_reads_may_be_changed() -> None:
    assert check_pass(RemoveIdentity(), ThenChanged(), X).rewritten == ("leaky_relu", "leaky_relu_1")
