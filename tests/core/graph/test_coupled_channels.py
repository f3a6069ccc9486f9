"""Junctions: a factor per channel taken out of all that write one and put into all that read it changes nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbcompile.core.graph.coupled_channels import GIVEN_OUT, Reader, junctions
from nbcompile.core.graph.shapes import Shapes
from tests.core.graph.scaled import Forward, X, check, found
from tests.symbolic import capture


def let(value: Any, then: Callable[[Any], Any]) -> Any:
    """A local name in a lambda."""
    return then(value)


@pytest.mark.parametrize(
    ("forward", "last", "repeats"),
    [
        (lambda m, y: m.flat(F.relu(y).flatten(1)), nn.Linear(6 * 35, 3), 35),
        (lambda m, y: m.flat(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1)), nn.Linear(6, 3), 1),
        (lambda m, y: m.flat(y.mean((2, 3))), nn.Linear(6, 3), 1),
        (lambda m, y: m.flat(y.view(y.size(0), -1)), nn.Linear(6 * 35, 3), 35),
        (lambda m, y: m.flat(torch.reshape(y, (2, 6 * 35))), nn.Linear(6 * 35, 3), 35),
        (lambda m, y: m.flat(F.adaptive_max_pool2d(y, 1).squeeze()), nn.Linear(6, 3), 1),
        (lambda m, y: m.flat(m.flatten(F.max_pool2d(y, 2)).relu()), nn.Linear(6 * 6, 3), 6),
        # tokens: the channels are the last axis
        (lambda m, y: m.flat(F.relu(m.token(y))), nn.Linear(6, 3), 1),
    ],
)
def test_linear_layers_behind_maps(forward: Forward, last: nn.Module, repeats: int) -> None:
    """A channel of a flattened map is as many features in a row."""
    gm, every = found(lambda m, x: forward(m, m.a(x)), flat=last, token=nn.Linear(5, 6), flatten=nn.Flatten())
    one = every[-1]
    assert (one.refused, one.readers, one.channels) == (None, [Reader("flat", repeats)], 6)
    assert check(gm, every, X) >= 1


def test_what_is_flattened_can_be_summed_only_with_its_like() -> None:
    like = lambda m, y: m.flat(y.flatten(1) + F.relu(m.c(y)).flatten(1))  # noqa: E731
    gm, (one,) = found(lambda m, x: like(m, m.a(x)), flat=nn.Linear(6 * 35, 3))
    assert (one.writers, one.readers) == (["a", "c"], [Reader("c", 1), Reader("flat", 35)])
    assert check(gm, (one,), X) == 1
    # six features of one channel each, beside six of a linear layer that are channels themselves
    unlike = lambda m, y: m.flat(y.mean((2, 3)) + m.other(y.flatten(1)))  # noqa: E731
    gm, every = found(lambda m, x: unlike(m, m.a(x)), flat=nn.Linear(6, 3), other=nn.Linear(6 * 35, 6))
    assert [one.writers for one in every] == [["a", "other"]]
    assert check(gm, every, X) == 1
    mixed = lambda m, y: m.flat(y[:, :, 0] + m.token(y.mean(3)))  # noqa: E731
    gm, every = found(lambda m, x: mixed(m, m.a(x)), flat=nn.Linear(5, 3), token=nn.Linear(7, 5))
    assert [one.refused for one in every if one.refused]
    check(gm, every, X)
    wide = lambda m, y: m.flat(y.flatten(1) + m.other(y.flatten(1)))  # noqa: E731
    gm, every = found(lambda m, x: wide(m, m.a(x)), flat=nn.Linear(210, 3), other=nn.Linear(210, 210))
    assert [one.refused for one in every] == ["'add' reads it and takes no factors"] * 2
    check(gm, every, X)


@pytest.mark.parametrize(
    ("forward", "refused"),
    [
        (lambda m, x: m.z(m.a(x) * m.gate(m.c(m.a2(x)).mean((2, 3), keepdim=True))), {"c": "'gate' reads it"}),
        (lambda m, x: m.z(torch.sigmoid(m.c(m.a2(x))) * m.a(x)), {"c": "'sigmoid' reads it and takes no factors"}),
        (lambda m, x: m.z(F.hardsigmoid(m.c(m.a2(x))) * m.a(x)), {"c": "'hardsigmoid' reads it and takes"}),
        # what the gate would make larger keeps no factor of its own
        (
            lambda m, x: m.z(m.a(x).mean((2, 3), keepdim=True) * m.c(m.a2(x)).sigmoid()),
            {"a": "'mul' reads it", "c": "'sigmoid' reads it"},
        ),
        (lambda m, x: m.z(m.a(x).sigmoid() * m.c(m.a2(x)).sigmoid()), {"a": "'sigmoid' reads it", "c": "'sigmoid_1'"}),
    ],
)  # fmt: skip
def test_gates(forward: Forward, refused: dict[str, str]) -> None:
    gm, every = found(forward, a2=nn.Conv2d(4, 6, 3), gate=nn.Hardsigmoid())
    reasons = {one.writers[0]: one.refused for one in every if one.refused}
    assert set(reasons) == set(refused)
    assert all(str(reasons[name]).startswith(reason) for name, reason in refused.items())
    assert check(gm, every, X) == len(every) - len(refused)


class Unbatched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.z = nn.Conv2d(4, 6, 3).double(), nn.Conv2d(6, 5, 1).double()
        self.p, self.q = nn.Linear(5, 6).double(), nn.Linear(6, 2).double()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.z(self.a(x[0])), self.q(self.p(x[0, 0, 0, :5]))


def reasons(forward: Forward, **layers: nn.Module) -> dict[str, str | None]:
    _, every = found(forward, **layers)
    return {one.writers[0]: one.refused for one in every}


def hooked() -> nn.Module:
    layer = nn.Conv2d(6, 6, 1)
    layer.register_forward_hook(lambda *_: None)
    return layer


def tied() -> dict[str, nn.Module]:
    one, other = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
    other.weight = one.weight
    return {"one": one, "other": other}


def test_layers_whose_weights_are_not_theirs_alone() -> None:
    reads = "reads it and takes no factors"
    twice = lambda m, x: m.z(m.c(m.c(m.a(x))))  # noqa: E731
    assert reasons(twice) == {"a": f"'c' {reads}: it is called 2 times"}
    sized = lambda m, x: m.z(m.d(m.a(x), output_size=(7, 5)))  # noqa: E731
    assert reasons(sized) == {"a": f"'d' {reads}: it is called with an output size"}
    tie = lambda m, x: m.z(m.one(m.a(x))) + m.z2(m.other(m.a2(x)))  # noqa: E731
    assert reasons(tie, **tied(), z2=nn.Conv2d(6, 5, 1), a2=nn.Conv2d(4, 6, 3)) == {
        "a": f"'one' {reads}: it shares a parameter with 'other.weight'",
        "a2": f"'other' {reads}: it shares a parameter with 'one.weight'",
    }
    read = lambda m, x: m.z(m.c(m.a(x))) + m.c.weight.sum()  # noqa: E731
    assert reasons(read)["a"] == f"'c' {reads}: other code reads its weight directly"
    hooks = "it carries hooks, which would be lost; remove them first"
    assert reasons(lambda m, x: m.z(m.c2(m.a(x))), c2=hooked()) == {"a": f"'c2' {reads}: {hooks}"}
    gm = capture(Unbatched())
    assert junctions(gm, Shapes(gm, (X,))) == ()
    gm, every = found(lambda m, x: (m.z(m.a(x)), m.a(x[:1])))
    assert every == ()


def test_what_is_given_out_and_what_reads_another_axis() -> None:
    assert found(lambda m, x: m.a(x))[1] == ()  # nobody reads it, and a last layer is no matter
    _, (one,) = found(lambda m, x: let(m.a(x), lambda y: (m.z(y), y)))
    assert (one.writers, one.readers, one.refused) == (["a"], [Reader("z", 1)], GIVEN_OUT)
    rows = lambda m, x: (m.rows(m.c(m.a(x))), m.z(m.a2(x)))  # noqa: E731
    gm, every = found(rows, a2=nn.Conv2d(4, 6, 3), rows=nn.Linear(5, 5))
    said = {one.writers[0]: one.refused for one in every}
    assert said == {"a": None, "c": "'rows' reads another axis of it", "a2": None}
    assert check(gm, every, X) == 2
    _, (one,) = found(lambda m, x: let(m.a(x), lambda y: m.z(F.silu(y)) + m.z2(y.sigmoid())), z2=nn.Conv2d(6, 5, 1))
    assert one.refused == "'silu' reads it and takes no factors"  # the first that says so


def test_what_is_tied_keeps_writers_readers_clips_and_reasons() -> None:
    """Whichever of the two values is the older one."""
    for swapped in (False, True):

        def forward(m: Any, x: Tensor, swapped: bool = swapped) -> Tensor:
            one, other = F.relu6(m.a(x)), m.act(m.a2(x))
            both = other + one if swapped else one + other
            z: Tensor = m.z(both) + m.z2(other) + m.z3(one) + (0 if swapped else other.sigmoid().mean())
            return z

        more = {"a2": nn.Conv2d(4, 6, 3), "z2": nn.Conv2d(6, 5, (3, 1), padding=(1, 0)), "z3": nn.Conv2d(6, 5, 1)}
        one = found(forward, act=nn.Hardtanh(-1, 2), **more)[1][0]
        assert sorted(one.writers) == ["a", "a2"]
        assert sorted(reader.name for reader in one.readers) == ["z", "z2", "z3"]
        assert sorted(clip.high for clip in one.clips) == [2, 6]
        assert one.refused == (None if swapped else "'sigmoid' reads it and takes no factors")
        assert one.channels == 6
