import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel
from torch.optim.swa_utils import AveragedModel

from nbcompile.core.errors import PreconditionError, UsageError
from nbcompile.core.example import Origin, TensorSpec
from nbcompile.core.graph.replace import put
from nbcompile.core.wrappers import require_loaded, unwrap

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


NOT_A_MODEL: dict[str, tuple[Callable[[], Any], str]] = {
    "text": (
        lambda: "nbcompile:dscnn",
        "the text 'nbcompile:dscnn': nbcompile.load reads files, and names of models are for the command line",
    ),
    "class": (lambda: nn.ReLU, r"the class ReLU: make one, as in ReLU\(\.\.\.\)"),
    "state_dict": (
        lambda: nn.Linear(1, 1).state_dict(),
        r"weights alone \(OrderedDict\): load them into a model with load_state_dict, and give that",
    ),
    "nothing": (lambda: None, "a NoneType"),
    "tensor": (lambda: torch.ones(1), "a Tensor"),
    "scripted": (
        lambda: torch.jit.script(nn.Sequential(nn.Linear(1, 1))),
        "TorchScript: give the model that was scripted or traced",
    ),
    "traced": (
        lambda: torch.jit.trace(nn.Linear(1, 1), torch.ones(1, 1)),
        "TorchScript: give the model that was scripted or traced",
    ),
    "program": (
        lambda: torch.export.export(nn.Linear(1, 1), (torch.ones(1, 1),)),
        "what torch.export made: give the model that was exported",
    ),
    "graph of a program": (
        lambda: torch.export.export(nn.Linear(1, 1), (torch.ones(1, 1),)).module(),
        "what torch.export made: give the model that was exported",
    ),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("name", NOT_A_MODEL)
def test_what_is_no_model(name: str) -> None:
    make, what = NOT_A_MODEL[name]
    with pytest.raises(
        UsageError, match=rf"^the model must be a torch.nn.Module as its own code makes it, not {what}$"
    ):
        unwrap(make())


def test_a_lazy_model_has_no_shapes_yet() -> None:
    model = nn.Sequential(nn.ReLU(), nn.LazyLinear(2))
    with pytest.raises(
        PreconditionError, match=r"^'1\.weight' of Sequential has no shape yet: run the model once first$"
    ):
        unwrap(DataParallel(model))
    buffered = nn.Sequential(nn.LazyBatchNorm1d(affine=False))
    with pytest.raises(PreconditionError, match=r"^'0\.running_mean' of Sequential has no shape yet"):
        unwrap(buffered)
    model(torch.ones(1, 3))
    assert unwrap(model) is model


def test_values_are_required() -> None:
    require_loaded(nn.Linear(1, 1), "verb")
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(2, affine=False, device="meta"))
    why = r"^verb: '1\.running_mean' is on the meta device and has no values: load the weights first$"
    with pytest.raises(PreconditionError, match=why):
        require_loaded(model, "verb")


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
