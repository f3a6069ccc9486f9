import contextlib
import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.parallel import DataParallel
from torch.optim.swa_utils import AveragedModel

from nbcompile.core.errors import PreconditionError, UsageError
from nbcompile.core.example import Origin, TensorSpec, origin_of, remember
from nbcompile.core.graph.replace import put
from nbcompile.core.wrappers import copied, require_loaded, unwrap, working_copy

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


class Recursive(nn.Module):
    """Whose own copy fails for no attribute's sake."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RecursionError("too deep")


def _open_file() -> Any:
    return Path(__file__).open()


OUTSIDE = "keep it outside of the model"
STUBBORN: dict[str, tuple[Callable[[], Any], str]] = {
    "lock": (threading.Lock, rf"is a lock \(cannot pickle '_thread\.lock' object\): {OUTSIDE}"),
    "file": (_open_file, rf"is a TextIOWrapper \(cannot pickle '.*' object\): {OUTSIDE}"),
    "generator": (lambda: (i for i in range(3)), rf"is a generator \(cannot pickle 'generator' object\): {OUTSIDE}"),
    "list": (lambda: [nn.ReLU(), threading.Lock()], rf"is a list \(.*\): {OUTSIDE}"),
    "computed": (
        lambda: torch.ones(1, requires_grad=True) * 2,
        "is a tensor that remembers how it was computed: keep it detached, or outside of the model",
    ),
}


@pytest.mark.parametrize("name", STUBBORN)
def test_what_cannot_be_copied_is_named(name: str) -> None:
    make, why = STUBBORN[name]
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(1, 1)))
    with contextlib.ExitStack() as stack:
        model[1][0].kept = value = make()
        if name == "file":
            stack.enter_context(value)
        with pytest.raises(PreconditionError, match=rf"^Sequential cannot be copied: '1\.0\.kept' {why}$"):
            copied(model)
        again = working_copy(model, training=False)
        assert again[1][0].kept is value
        assert again[1][0].weight is not model[1][0].weight
        assert not again[0].training
        assert model[0].training


@pytest.mark.parametrize("copy_", [copied, working_copy])
def test_modules_that_refuse_to_be_copied(copy_: Callable[[nn.Module], nn.Module]) -> None:
    with pytest.raises(PreconditionError, match=r"^Stubborn cannot be copied: not mine$"):
        copy_(Stubborn(1, 1))
    inside = nn.Sequential(nn.Sequential(nn.ReLU(), Stubborn(1, 1)))
    inside[0][0].kept = threading.Lock()
    with pytest.raises(
        PreconditionError, match=r"^Sequential cannot be copied: '0\.0\.kept' is a lock|'0\.1': not mine$"
    ):
        copy_(inside)
    with pytest.raises(PreconditionError, match=r"^Recursive cannot be copied: too deep$"):
        copy_(Recursive())


class Silent(nn.Sequential):
    """Whose ``train`` and ``eval`` return nothing."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)

    def eval(self) -> Any:
        super().train(False)
        self.asked = True


def test_copies_are_put_in_a_mode() -> None:
    model = Silent(nn.Linear(1, 1))
    for copy_ in (copied, working_copy):
        assert copy_(model).training
        assert copy_(model, training=True).training
        frozen = copy_(model, training=False)
        assert not frozen[0].training
        assert frozen.asked  # a model's own eval may do more
    assert model[0].training
    assert not hasattr(model, "asked")


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
