"""How the modules of a model are called in one run."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.errors import PreconditionError
from nbcompile.core.tracing.call import Call
from nbcompile.core.tracing.call_watch import watch_calls

X = torch.ones(2, 3)


class Calls(nn.Module):
    """``a`` is called in one way, twice; ``b`` in two; ``c`` with an object; ``d`` with 2 and 3 dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.d, self.unused = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.b, self.c = Scaled(), Hooked()

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.a(x))
        y = self.b(self.b(y, 2.0), factor=3.0)
        y = self.c(y, print)
        z: Tensor = self.d(self.d(y)[None])[0]
        return z


class Scaled(nn.Module):
    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        return x * factor


class Hooked(nn.Module):
    def forward(self, x: Tensor, hook: Any) -> Tensor:
        return x


def test_each_module_that_is_called_in_one_way() -> None:
    model = Calls()
    found = watch_calls(model, (X,))
    assert {name for name, m in model.named_modules() if m in found} == {"", "a", "d"}
    assert found[model] == found[model.a] == Call.of((X,), {})
    assert found[model.a].dimensions == (2,)
    assert found[model.d].dimensions is None  # they differ: no number of dimensions is sure


class PassedBy(nn.Module):
    """The children of ``block`` are called, ``block`` is not; ``other`` is another name of one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        self.whole = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        self.other = self.whole[0]

    def forward(self, x: Tensor) -> Tensor:
        y = self.block[1](x)
        y = self.block(y)
        y = self.whole(y)
        z: Tensor = self.other(y)
        return z


def test_modules_whose_children_are_called_without_them() -> None:
    model = PassedBy()
    found = watch_calls(model, (X,))
    names = {name for name, m in model.named_modules(remove_duplicate=False) if m in found}
    assert names == {"", "block.0", "block.1", "whole.0", "whole.1", "other"}


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.outer = nn.Sequential(nn.Linear(4, 3))
        self.after = nn.Sequential(nn.Linear(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        try:
            y: Tensor = self.outer(x)
        except RuntimeError:
            y = self.after(x)
        z: Tensor = self.after[0](y)
        return z


def test_a_call_that_fails_and_is_caught() -> None:
    """It is over, too: what is called behind it is not inside it."""
    model = Fails()
    found = watch_calls(model, (X,))
    assert model.outer in found
    assert model.after not in found
    assert model.after[0] in found


def test_nothing_is_left_behind() -> None:
    model = Calls()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = X.clone()
    watch_calls(model, (x,))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(m.training for m in model.modules())
    assert torch.equal(x, X)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(PreconditionError, match=r"^Calls does not run on the example input: RuntimeError: "):
        watch_calls(model, (torch.ones(2, 4),))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
