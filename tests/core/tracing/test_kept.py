"""What is kept from call to call and shows in no output of the example is seen all the same; caches are let be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.errors import CaptureError
from nbcompile.core.tracing.capture import capture
from tests.core.tracing.runs import X

DEAD = 1e9
"""No input reaches as far: behind a ReLU of what is so much less, all is zero."""


class Keeps(nn.Module):
    """Does ``what`` with what it has kept."""

    def __init__(self, what: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1).double())
        self.rgb = torch.ones(1, 3, 1, 1)
        self.last: Any = 0
        self.memory: list[Tensor] = []
        self.state: dict[str, Tensor] = {}
        self.count, self.grid = 0, None
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        return self.what(self, x)


def dead(x: Tensor) -> Tensor:
    return torch.relu(x - DEAD).mean((0, 2, 3), keepdim=True)


def average(m: Any, x: Tensor) -> Tensor:
    m.last = m.last * 0.5 + dead(x)
    return x - m.last


def buffer(m: Any, x: Tensor) -> Tensor:
    m.mean.mul_(0.5).add_(dead(x))
    return x - m.mean


def through_a_part(m: Any, x: Tensor) -> Tensor:
    m.mean[:, :1] += dead(x)[:, :1]
    y = torch.zeros_like(x)
    y[:] = m.mean
    return x - y


def written_later(m: Any, x: Tensor) -> Tensor:
    y = x - m.last
    m.last = torch.zeros_like(x)
    m.last[:, 1:].add_(dead(x)[:, 1:])
    return y


def in_a_list(m: Any, x: Tensor) -> Tensor:
    y = x - sum(m.memory)
    m.memory.append(dead(x))
    return y


def in_a_dict(m: Any, x: Tensor) -> Tensor:
    y = x - m.state.get("last", 0)
    m.state["last"] = dead(x)
    return y


def number(m: Any, x: Tensor) -> Tensor:
    m.count += 1
    return x + m.count * dead(x)


def grid(m: Any, x: Tensor) -> Tensor:
    if m.grid is None:
        m.grid = torch.linspace(0, 1, x.shape[3]).to(x)
    return x + m.grid


def cast(m: Any, x: Tensor) -> Tensor:
    m.rgb = m.rgb.type_as(x)
    return x - m.rgb


def like(m: Any, x: Tensor) -> Tensor:
    if m.grid is None:
        m.grid = torch.ones_like(x[:1]) + x.new_zeros(1)
    return x + m.grid


def statistic(m: Any, x: Tensor) -> Tensor:
    m.last = m.last * 0.5 + x.mean((0, 2, 3), keepdim=True)
    m.mean.add_(m.last)
    return x * 2


def output(m: Any, x: Tensor) -> Tensor:
    m.last = x * 2
    return m.last  # type: ignore[no-any-return]


@pytest.mark.parametrize("what", [average, buffer, through_a_part, written_later, in_a_list, in_a_dict, number])
def test_state_that_shows_for_no_example(what: Callable[[Any, Tensor], Tensor]) -> None:
    model = Keeps(what).eval()
    assert torch.equal(model(X.clone()), model(X.clone()))  # so two outputs tell nothing
    with pytest.raises(CaptureError, match=r"in forward: it gives another output when it is called again, because it "):
        capture(Keeps(what).eval(), (X,))


@pytest.mark.parametrize("what", [grid, cast, like, statistic, output])
def test_what_is_kept_for_other_reasons(what: Callable[[Any, Tensor], Tensor]) -> None:
    model = Keeps(what).eval()
    gm = capture(model, (X,))
    y = X[:, :, :4].flip(0)
    assert torch.equal(gm(y.clone()), Keeps(what).eval()(y.clone()))
