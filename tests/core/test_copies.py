"""Copies: what they share, what they hold of their own, and that the model is as it was whatever a copy does."""

import contextlib
import copy
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from nbcompile.core.copies import copied, shadow, weightless, working_copy
from nbcompile.core.errors import PreconditionError
from nbcompile.core.example import Origin, TensorSpec, origin_of, remember
from nbcompile.core.tracing.modules import state


class Keeping(nn.Module):
    """Keeps all kinds of things."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 1).double(), nn.BatchNorm2d(5).double()
        self.register_buffer("table", torch.arange(7))
        self.grid = torch.ones(3)
        self.sizes, self.cache, self.seen = [3, [5]], {"a": {"b": 1}}, {7}
        self.pair: Any = (self.conv, [self.norm])
        self.by_name: Any = OrderedDict(first=self.conv, other=torch.zeros(2))
        self.by_module = {self.norm: "norm"}
        self.lock, self.generator = threading.Lock(), torch.Generator().manual_seed(3)
        self.myself = [self]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))  # type: ignore[no-any-return]


def memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def test_parameters_share_their_memory_and_are_no_parameters_of_the_model() -> None:
    model = Keeping()
    model.conv.weight.requires_grad_(False)
    made = shadow(model)
    assert type(made) is Keeping
    for (name, theirs), (same, ours) in zip(model.named_parameters(), made.named_parameters(), strict=True):
        assert name == same
        assert ours is not theirs
        assert memory(ours) == memory(theirs)
        assert type(ours) is nn.Parameter
        assert ours.requires_grad == theirs.requires_grad == (name != "conv.weight")


def test_what_was_made_under_inference_mode_is_copied() -> None:
    """It has no views that could be trained."""
    with torch.inference_mode():
        model = nn.Linear(3, 2)
    made: Any = shadow(model)
    assert not made.weight.is_inference()
    assert made.weight.requires_grad
    assert memory(made.weight) != memory(model.weight)


class MergesInEval(nn.Module):
    """As the adapters do that are called LoRA."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.more = nn.Linear(3, 3), nn.Parameter(torch.ones(3, 3))

    def train(self, mode: bool = True) -> "MergesInEval":
        with torch.no_grad():
            self.layer.weight.add_(self.more if self.training and not mode else 0)
        super().train(mode)
        return self


def test_a_model_that_merges_weights_in_eval_mode_has_no_shadow_in_it() -> None:
    model = nn.Sequential(MergesInEval())
    before = model[0].layer.weight.clone()
    made: Any = shadow(model, training=False)
    assert memory(made[0].more) != memory(model[0].more)
    assert torch.equal(made[0].layer.weight, before + 1)
    assert torch.equal(model[0].layer.weight, before)


def test_buffers_and_plain_tensors_are_copies() -> None:
    model = Keeping()
    model.free = torch.ones(2, requires_grad=True)  # type: ignore[assignment]
    made: Any = shadow(model)
    for theirs, ours in zip(
        (*model.buffers(), model.grid, model.free), (*made.buffers(), made.grid, made.free), strict=True
    ):
        assert torch.equal(theirs, ours)
        assert memory(theirs) != memory(ours)
    assert made.free.requires_grad
    made.table.add_(1)
    made.grid.zero_()
    assert torch.equal(model.get_buffer("table"), torch.arange(7))
    assert torch.equal(model.grid, torch.ones(3))


def test_containers_are_copies_that_hold_the_copys_modules() -> None:
    model = Keeping()
    made: Any = shadow(model)
    assert made.pair == (made.conv, [made.norm])
    assert type(made.by_name) is OrderedDict
    assert made.by_name["first"] is made.conv is not model.conv
    assert made.by_module == {made.norm: "norm"}
    assert made.myself[0] is made
    made.sizes[1].append(9)
    made.cache["a"]["b"] = 2
    made.seen.add(8)
    made.by_name["other"].add_(1)
    made.by_name["more"] = 1
    made.pair[1].append(None)
    assert (model.sizes, model.cache, model.seen) == ([3, [5]], {"a": {"b": 1}}, {7})
    assert list(model.by_name) == ["first", "other"]
    assert torch.equal(model.by_name["other"], torch.zeros(2))
    assert model.pair == (model.conv, [model.norm])


def test_shared_things_stay_shared() -> None:
    model = Keeping()
    model.again, model.tied = model.conv, nn.Conv2d(3, 5, 1)
    model.tied.weight = model.conv.weight
    model.more, model.listed = model.sizes, [model.grid, model.grid]
    made: Any = shadow(model)
    assert made.again is made.conv
    assert made.tied.weight is made.conv.weight
    assert made.more is made.sizes
    assert made.listed[0] is made.listed[1] is made.grid


class Inner(nn.Module):
    """A layer in a container, and a parameter beside it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.inside, self.scale = nn.ModuleDict({"layer": layer}), nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.inside["layer"](x) * self.scale  # type: ignore[no-any-return]


class Around(nn.Module):
    """A graph in three places, of which one is hidden, and one of its layers before and behind it."""

    def __init__(self, hidden_first: bool) -> None:
        super().__init__()
        layer = nn.Conv2d(2, 2, 1)
        graph = fx.symbolic_trace(Inner(layer))
        keeper = nn.Identity()
        keeper.hidden = [graph]
        self.first = keeper if hidden_first else layer
        self.chain, self.graph, self.keeper, self.layer = nn.Sequential(graph, nn.ReLU()), graph, keeper, layer

    def forward(self, x: Tensor) -> Tensor:
        return self.chain(self.keeper.hidden[0](x)) + self.layer(x) + self.graph(x)  # type: ignore


@pytest.mark.parametrize("hidden_first", [False, True])
@pytest.mark.parametrize("copy_", [copied, working_copy, shadow])
def test_a_graph_in_several_places_is_copied_once(copy_: Callable[[nn.Module], Any], hidden_first: bool) -> None:
    model = Around(hidden_first)
    made, x = copy_(model), torch.randn(1, 2, 7, 5)
    assert made.graph is made.chain[0] is made.keeper.hidden[0]
    assert made.graph.get_submodule("inside.layer") is made.layer
    assert not {id(module) for module in made.modules()} & {id(module) for module in model.modules()}
    assert torch.equal(made(x), model(x))
    assert made.state_dict().keys() == model.state_dict().keys()


def test_a_layer_may_know_the_graph_that_it_is_in() -> None:
    graph = fx.symbolic_trace(Inner(nn.Conv2d(2, 2, 1)))
    graph.get_submodule("inside.layer").home = [graph]
    made = working_copy(graph)
    assert made.get_submodule("inside.layer").home[0] is made is not graph


@pytest.mark.parametrize("copy_", [copied, working_copy, shadow])
def test_what_is_compiled_is_copied_with_its_hooks(copy_: Callable[[nn.Module], Any]) -> None:
    layer, seen = nn.Linear(4, 4), []

    def told(module: nn.Module, args: Any, output: Tensor) -> None:
        seen.append((module, layer))

    layer.register_forward_hook(told)
    model = nn.Sequential(torch.compile(layer, backend="eager"), layer)  # type: ignore[arg-type]
    made, x = copy_(model), torch.randn(3, 4)
    wanted = model(x)
    seen.clear()
    assert torch.equal(made(x), wanted)
    assert made[1] is made[0]._orig_mod is not layer
    assert seen
    assert all(module is known is made[1] for module, known in seen)


def test_of_a_lock_there_is_one_and_a_generator_is_cloned() -> None:
    model = Keeping()
    made: Any = shadow(model)
    assert made.lock is model.lock
    assert made.generator is not model.generator
    before = model.generator.get_state()
    drawn = torch.rand(3, generator=made.generator)
    assert torch.equal(model.generator.get_state(), before)
    assert torch.equal(torch.rand(3, generator=model.generator), drawn)


def through_closure(model: Any) -> Any:
    def hook(_: nn.Module, __: Any, y: Tensor, *, by: float = 3.0) -> Tensor:
        model.calls += 1
        return y * by

    return hook


def through_default(model: Any) -> Any:
    def hook(_: nn.Module, __: Any, y: Tensor, net: Any = model) -> Tensor:
        net.calls += 1
        return y * 3

    return hook


def through_keyword(model: Any) -> Any:
    def hook(_: nn.Module, __: Any, y: Tensor, *, net: Any = model) -> Tensor:
        net.calls += 1
        return y * 3

    return hook


def counting(model: Any, _: nn.Module, __: Any, y: Tensor) -> Tensor:
    model.calls += 1
    return y * 3


@pytest.mark.parametrize(
    "made_with",
    [
        through_closure,
        through_default,
        through_keyword,
        lambda model: counting.__get__(model),
        lambda model: partial(counting, model),
    ],
)
def test_hooks_that_know_the_model_know_the_copy(made_with: Any) -> None:
    model: Any = Keeping().eval()
    model.calls = 0
    model.conv.register_forward_hook(made_with(model))
    made: Any = shadow(model)
    x = torch.randn(1, 3, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        ours = made(x)
        assert (made.calls, model.calls) == (1, 0)
        assert torch.equal(ours, model(x))
        assert not torch.equal(ours, Keeping().eval()(x))


def no_hook_of_its_own(*_: Any) -> None:
    """Knows no module."""


def test_other_functions_are_the_same() -> None:
    model: Any = Keeping()
    model.act = no_hook_of_its_own
    assert shadow(model).act is no_hook_of_its_own


def test_the_model_remembers_what_it_is_called_with() -> None:
    model, origin = Keeping(), Origin((TensorSpec((1, 3, 4, 5)),))
    remember(model, origin)
    assert origin_of(shadow(model)) is origin
    assert origin_of(shadow(Keeping())) is None


class OwnCopy(nn.Module):
    """Says for itself how it is copied."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.copies = nn.Parameter(torch.ones(2)), 0

    def __deepcopy__(self, memo: Any) -> "OwnCopy":
        made = OwnCopy()
        made.copies = self.copies + 1
        return made


class Refusing(OwnCopy):
    def __deepcopy__(self, memo: Any) -> "Refusing":
        raise ValueError("there is only one of me")


def test_a_class_that_says_how_it_is_copied_is_asked() -> None:
    model = nn.Sequential(nn.Linear(2, 2), OwnCopy())
    made = shadow(model)
    assert made[1].copies == 1
    assert memory(made[0].weight) == memory(model[0].weight)
    assert memory(made[1].weight) != memory(model[1].weight)
    with pytest.raises(PreconditionError, match=r"^Sequential cannot be copied: .*there is only one of me"):
        shadow(nn.Sequential(nn.Linear(2, 2), Refusing()))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "new", 1),
        lambda m: setattr(m, "grid", m.grid.clone()),
        lambda m: m.grid.add_(1),
        lambda m: m.table.add_(1),
        lambda m: m.conv.weight.add_(1),
        lambda m: setattr(m.conv, "weight", nn.Parameter(m.conv.weight.detach())),
        lambda m: m.sizes[1].append(1),
        lambda m: m.cache["a"].update(b=2),
        lambda m: m.seen.add(1),
        lambda m: m.by_name.update(other=torch.zeros(2)),
        lambda m: setattr(m, "flag", None),
    ],
)
def test_a_change_of_what_is_kept_is_seen(change: Any) -> None:
    model: Any = Keeping()
    model.flag = False
    before = state(model)
    same = state(model)
    assert before.keys() == same.keys()
    with torch.no_grad():
        change(model)
    after = state(model)
    differing = [key for key in after if key not in before or not equal(before[key], after[key])]
    assert len(differing) == 1


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and bool(a == b)


def test_modes_and_hooks_are_no_state() -> None:
    model = Keeping()
    before = state(model)
    model.eval()
    model.conv.register_forward_hook(no_hook_of_its_own)
    after = state(model)
    assert before.keys() == after.keys()
    assert all(equal(before[key], after[key]) for key in after)


def test_state_names_modules_and_attributes() -> None:
    names = set(state(Keeping()))
    assert {("", "sizes"), ("conv", "weight"), ("norm", "running_mean"), ("", "table"), ("norm", "eps")} <= names
    assert not {key for _, key in names} & {"_modules", "_buffers", "_parameters", "training", "_forward_hooks"}


ORIGIN = Origin((TensorSpec((2, 3)),), "a:b")


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


def test_a_weightless_copy_has_sizes_and_ties_and_no_memory() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3)).eval()
    model[1].weight = model[0].weight
    model[0].weight.requires_grad = False
    bare = weightless(model)
    tensors = dict(bare.named_parameters()) | dict(bare.named_buffers())
    assert {key: value.shape for key, value in tensors.items()} == {
        key: value.shape for key, value in (*model.named_parameters(), *model.named_buffers())
    }
    assert {x.device.type for x in tensors.values()} == {"meta"}
    assert bare[1].weight is bare[0].weight
    assert isinstance(bare[0].weight, nn.Parameter)
    assert not bare[0].weight.requires_grad
    assert model[0].weight.device.type == "cpu"


class Sharing(nn.Module):
    """Tensors of all kinds: in one memory, strided, expanded, empty, with a gradient, complex, under two names."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.arange(24.0).reshape(2, 3, 4)
        self.register_buffer("whole", whole)
        self.register_buffer("row", whole[1])
        self.register_buffer("again", whole)
        self.register_buffer("flat", whole.view(-1))
        self.register_buffer("turned", torch.randn(3, 5).t())
        self.register_buffer("last", torch.randn(2, 3, 1, 1).to(memory_format=torch.channels_last))
        self.register_buffer("wide", torch.ones(1).expand(4))
        self.register_buffer("none", torch.empty(0))
        self.register_buffer("phase", torch.randn(2, dtype=torch.complex64).conj())
        self.free = torch.ones(3, requires_grad=True)
        self.free.grad = torch.full((3,), 2.0)
        self.layer = nn.Linear(3, 2)
        self.layer.weight.requires_grad_(False)
        self.tied = self.layer.weight


def test_tensors_are_copied_as_deepcopy_does() -> None:
    model = Sharing()
    ours, theirs = working_copy(model), copy.deepcopy(model)
    names = [*dict(model.named_buffers(remove_duplicate=False)), "free", "tied", "layer.weight", "layer.bias"]
    for name in names:
        made, wanted = (attrgetter(name)(one) for one in (ours, theirs))
        assert torch.equal(made, wanted), name
        for look in (type, Tensor.stride, Tensor.storage_offset, lambda x: (x.dtype, x.requires_grad, x.is_leaf)):
            assert look(made) == look(wanted), name
    for one in names:
        for other in names:
            pairs = [[attrgetter(name)(m) for name in (one, other)] for m in (ours, theirs)]
            same = [memory(a) == memory(b) and a.numel() > 0 < b.numel() for a, b in pairs]
            assert same[0] == same[1], (one, other)
        mine, own = (attrgetter(one)(m) for m in (ours, model))
        assert own.numel() == 0 or memory(mine) != memory(own)
    assert torch.equal(ours.free.grad, model.free.grad)  # type: ignore[arg-type]
    assert ours.tied is ours.layer.weight
