import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.parallel import DataParallel
from torch.optim.swa_utils import AveragedModel

from nbcompile.core.errors import PreconditionError
from nbcompile.core.example import Origin, TensorSpec, origin_of, remember
from nbcompile.core.graph.replace import put
from nbcompile.core.wrappers import copied, unwrap

ORIGIN = Origin((TensorSpec((2, 3)),), "a:b")


def test_wrappers_are_seen_through_in_any_order() -> None:
    model = nn.Linear(3, 2)
    averaged = AveragedModel(model)
    assert unwrap(model) is model
    assert unwrap(DataParallel(model)) is model
    assert unwrap(averaged) is averaged.module
    assert unwrap(DataParallel(averaged)) is averaged.module
    assert unwrap(torch.compile(DataParallel(model))) is model
    inner = torch.compile(model)
    assert unwrap(DataParallel(inner)) is model
    around = nn.Sequential(DataParallel(model))
    assert unwrap(around) is around  # what is inside a network is the network's own


def test_copies_remember() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    remember(model, ORIGIN)
    for one in (model, fx.symbolic_trace(model)):
        remember(one, ORIGIN)
        again = copied(one)
        assert origin_of(again) == ORIGIN
        assert again is not one
        assert not {id(p) for p in again.parameters()} & {id(p) for p in one.parameters()}
    assert origin_of(copied(nn.ReLU())) is None


class Stubborn(nn.Linear):
    def __deepcopy__(self, memo: Any) -> nn.Module:
        raise RuntimeError("not mine")


def test_what_cannot_be_copied() -> None:
    with pytest.raises(PreconditionError, match=r"^Stubborn cannot be copied: not mine$"):
        copied(Stubborn(1, 1))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        self.b = self.a
        self.c = self.a[0]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c(self.b(x))
        return y


def test_a_module_is_replaced_under_every_name() -> None:
    tree, new = Twice(), nn.Identity()
    before = copy.deepcopy(tree)
    put(tree, tree.a[0], new)
    assert tree.a[0] is tree.b[0] is tree.c is new
    assert isinstance(tree.a[1], nn.ReLU)
    put(before, before.a, new)
    assert before.a is before.b is new
    assert isinstance(before.c, nn.Linear)
    put(before, nn.ReLU(), nn.Tanh())  # which is not there
    assert not [m for m in before.modules() if isinstance(m, nn.Tanh)]
