"""What stays one node of every graph."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.layers import Scale
from nbcompile.core.tracing.modules import calls_itself, hollow_scripts, is_leaf
from tests.core.tracing.scripted import scripted


class Norm(nn.LayerNorm):
    """Computes as another class does, and its code may be anything."""


class SameConv(nn.Conv2d):
    """A layer by another name."""


class OwnConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class Called(nn.Conv2d):
    def __call__(self, x: Any) -> Any:
        return super().__call__(x) + 1


@pytest.mark.parametrize(
    ("module", "leaf"),
    [
        (nn.Conv2d(1, 1, 1), True),
        (nn.ReLU(), True),
        (nn.MultiheadAttention(4, 2), True),
        (SameConv(1, 1, 1), True),
        (scripted(nn.ReLU()), True),
        (OwnConv(1, 1, 1), False),
        (Norm(3), False),
        (Scale(3, 2), False),
        (nn.Sequential(nn.ReLU()), False),
        (nn.ModuleList([nn.ReLU()]), False),
        (nn.ModuleDict({"a": nn.ReLU()}), False),
    ],
    ids=lambda v: type(v).__name__,
)
def test_leaves(module: nn.Module, leaf: bool) -> None:
    assert is_leaf(module) is leaf


def test_a_class_with_its_own_call_says_so() -> None:
    assert calls_itself(Called(1, 1, 1))
    assert not calls_itself(nn.Conv2d(1, 1, 1))
    assert not calls_itself(OwnConv(1, 1, 1))
    assert not calls_itself(scripted(nn.ReLU()))


def test_scripts_get_something_around_them_that_takes_hooks() -> None:
    inner = scripted(nn.Sequential(nn.Linear(3, 5), nn.ReLU()))
    root = nn.Sequential(nn.Flatten(), inner)
    names = [name for name, _ in hollow_scripts(root)]
    assert names == ["", "0", "1"]  # what is inside a script takes no hooks: it is not told of
    assert root[1] is not inner
    assert is_leaf(root[1])
    seen: list[tuple[int, ...]] = []
    root[1].register_forward_hook(lambda _, __, y: seen.append(tuple(y.shape)))
    x = torch.randn(2, 3)
    assert torch.equal(root(x), inner(x))
    assert seen == [(2, 5)]
    assert root[1].code == inner.code  # asks of other code are the script's
