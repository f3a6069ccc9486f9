"""Networks made to deceive: each comes back exactly, or is refused by name; none is silently wrong.

Every case here was once a counterexample.
"""

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nbcompile
from nbcompile.core.blocks import sites
from nbcompile.core.numerics import relative_error
from nbcompile.testing import scramble_

X = torch.randn(2, 3, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """conv → norm → ReLU → conv, with a change made by ``alter``."""

    def __init__(self, alter: Callable[["Net"], object] = lambda _: None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 2, 3, padding=1)
        self.double()
        alter(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bn(self.conv(x)).relu())


class ReadsMean(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bn(self.conv(x)).relu() + self.bn.running_mean.view(1, -1, 1, 1))


class Branches(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.last(self.bn(y).relu() if x.sum() > 0 else y.relu())


class Sequence(nn.Module):
    """A linear layer whose norm normalises the other axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(6, width, bias=False)
        self.bn = nn.BatchNorm1d(8)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.fc(x)).relu()


def giant_of(model: nn.Module, x: Tensor, **options: object) -> nn.Module:
    giant = nbcompile.expand(model, x, where=options.pop("where", ["conv"]), ratio=2, **options)  # type: ignore[arg-type]
    scramble_(giant)
    nbcompile.PLT(giant, steps=1).step()
    return giant.eval()


def assert_comes_back(model: nn.Module, x: Tensor, *more: Tensor, **options: object) -> nn.Module:
    giant = giant_of(model, x, **options)
    tiny = nbcompile.fuse(giant)
    original = copy.deepcopy(model).eval()
    original.load_state_dict(tiny.state_dict())
    for inputs in (x, *more):
        assert relative_error(tiny(inputs), giant(inputs)) < 1e-12
        assert relative_error(original(inputs), giant(inputs)) < 1e-12
    return giant


def hook(model: Net) -> None:
    model.bn.register_forward_hook(lambda _, __, y: 2 * y + 1)


def pre_hook(model: Net) -> None:
    model.bn.register_forward_pre_hook(lambda _, args: (args[0] * 3,))


def own_forward(model: Net) -> None:
    model.bn.forward = MethodType(lambda self, x: 3 * nn.BatchNorm2d.forward(self, x) + x, model.bn)  # type: ignore[method-assign]


@pytest.mark.parametrize("alter", [hook, pre_hook, own_forward])
def test_a_norm_that_was_changed_absorbs_nothing(alter: Callable[[Net], object]) -> None:
    giant = assert_comes_back(Net(alter), X)
    assert [block.spec.inner for block in sites(giant).values()] == ["scale"]


@pytest.mark.parametrize("alter", [hook, pre_hook, own_forward])
def test_a_norm_that_was_changed_is_not_folded(alter: Callable[[Net], object]) -> None:
    model = scramble_(Net(alter)).eval()
    assert relative_error(nbcompile.fuse(model, scope="all")(X), model(X)) < 1e-12


def test_an_identity_with_a_hook_is_not_removed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Identity()).double().eval()
    model[1].register_forward_hook(lambda _, __, y: y + 1)
    assert relative_error(nbcompile.fuse(model, scope="all")(X), model(X)) < 1e-12


def test_a_layer_whose_forward_was_replaced_is_refused() -> None:
    model = Net()
    model.conv.forward = MethodType(lambda self, x: 2 * nn.Conv2d.forward(self, x), model.conv)  # type: ignore[method-assign]
    with pytest.raises(nbcompile.PreconditionError, match=r"'conv' cannot be expanded: its forward was replaced"):
        nbcompile.expand(model, X, where=["conv"])
    scramble_(model.eval())
    assert relative_error(nbcompile.fuse(model, scope="all")(X), model(X)) < 1e-12


def hook_block(block: nn.Module) -> None:
    block.register_forward_hook(lambda _, __, y: y.abs())


def pre_hook_block(block: nn.Module) -> None:
    block.register_forward_pre_hook(lambda _, args: (args[0] * 3,))


def replace_forward(block: nn.Module) -> None:
    block.forward = MethodType(lambda self, *args: 2 * type(self).forward(self, *args), block)  # type: ignore[method-assign]


@pytest.mark.parametrize("name", ["conv", "conv.stages.0.layer", "conv.last"])
@pytest.mark.parametrize(
    ("alter", "why"),
    [
        (hook_block, "it carries hooks, which would be lost; remove them first"),
        (pre_hook_block, "it carries hooks, which would be lost; remove them first"),
        (replace_forward, "its forward was replaced on the object itself; undo that first"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_what_was_added_to_a_block_is_not_dropped(
    name: str, alter: Callable[[nn.Module], object], why: str, force: bool
) -> None:
    giant = giant_of(Net(), X)
    alter(giant.get_submodule(name))
    with pytest.raises(nbcompile.PreconditionError) as caught:
        nbcompile.fuse(giant, force=force)
    assert str(caught.value) == f"contract-sites: '{name}' cannot be contracted: {why}"


class OwnCall:
    """Goes before a class of torch: what a call gives is not what its forward gives."""

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = super().__call__(x)  # type: ignore[misc]
        return 2 * y.abs() + 1


@pytest.mark.parametrize(
    ("at", "kind", "args"),
    [
        (0, nn.Conv2d, (3, 4, 3)),
        (1, nn.BatchNorm2d, (4,)),
        (2, nn.ReLU, ()),
        (2, nn.Identity, ()),
        (2, nn.Dropout, ()),
        (2, nn.AvgPool2d, (2,)),
    ],
)
def test_a_class_with_a_call_of_its_own_is_none_of_torchs(at: int, kind: Any, args: tuple[int, ...]) -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)]
    layers[at] = type(kind.__name__, (OwnCall, kind), {})(*args)
    model = scramble_(nn.Sequential(*layers).double()).eval()
    for example in (None, X):
        assert relative_error(nbcompile.fuse(model, example_input=example)(X), model(X)) < 1e-12
    if kind is nn.Conv2d:
        with pytest.raises(nbcompile.PreconditionError, match=r"^expand: '0' cannot be expanded: it is not reached"):
            nbcompile.expand(model, X, where=["0"])
    giant = assert_comes_back(model, X, where=["3"])
    assert list(sites(giant)) == ["3"]


@pytest.mark.parametrize("width", [8, 5])
def test_a_linear_layer_before_a_norm_of_another_axis(width: int) -> None:
    x = torch.randn(2, 8, 6, dtype=torch.float64)
    giant = assert_comes_back(Sequence(width), x, where=["fc"])
    assert not next(iter(sites(giant).values())).spec.absorbers


def test_a_running_mean_that_is_read_elsewhere_absorbs_nothing() -> None:
    assert_comes_back(ReadsMean(), X)


def test_an_untraceable_model_is_exact_on_the_path_not_seen() -> None:
    assert_comes_back(Branches(), X.abs(), -X.abs())


@pytest.mark.parametrize("read", ["bias", "weight"])
def test_a_weight_that_is_read_elsewhere_is_not_folded(read: str) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn(self.conv(x)).relu()
            return y + (self.conv.bias.view(1, -1, 1, 1) if read == "bias" else F.conv2d(x, self.conv.weight))

    model = scramble_(Reads().double()).eval()
    assert relative_error(nbcompile.fuse(model, scope="all")(X), model(X)) < 1e-12


def test_a_layer_that_is_also_called_from_outside_the_tree_is_refused() -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.last(self.bn(self.kept[0](x)).relu())

    model = Twice()
    model.kept = [model.conv]  # type: ignore[assignment]
    with pytest.raises(
        nbcompile.PreconditionError, match=r"'conv' was replaced, but the model still calls the old layer"
    ):
        nbcompile.expand(model, X, where=["conv"])


def test_a_model_of_one_batch_size_is_probed_too() -> None:
    class Fixed(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.bn(self.kept[0](x.view(2, 3, 7, 5))).relu()) + self.conv(x).mean()

    model = Fixed()
    model.kept = [model.conv]  # type: ignore[assignment]
    with pytest.raises(nbcompile.PreconditionError, match="still calls the old layer"):
        nbcompile.expand(model, X, where=["conv"])


def test_a_shift_that_overflows_is_refused() -> None:
    giant = giant_of(Net().half(), X.half())
    block = next(iter(sites(giant).values()))
    with torch.no_grad():
        for stage in block.stages:
            stage.get_parameter("norm.bias").fill_(6e4)
        block.get_parameter("last.weight").fill_(100)
    with pytest.raises(nbcompile.PreconditionError, match=r"the shift of 'conv' is too large for torch\.float16"):
        nbcompile.fuse(giant)


def test_a_norm_that_lost_its_statistics_after_expand_is_refused() -> None:
    giant = giant_of(Net(), X)
    giant.set_submodule("bn", nn.ReLU())
    with pytest.raises(nbcompile.PreconditionError, match=r"'conv' needs 'bn\.running_mean' to take its shift"):
        nbcompile.fuse(giant)


def test_nan_outside_the_sites_is_named() -> None:
    giant = giant_of(Net(), X)
    with torch.no_grad():
        giant.get_parameter("bn.weight").fill_(torch.nan)
    with pytest.raises(nbcompile.PreconditionError, match=r"'bn\.weight' holds NaN or Inf"):
        nbcompile.fuse(giant)


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (F.elu, "elu"),
        (F.mish, "mish"),
        (torch.tanh, "tanh"),
        (F.softplus, "softplus"),
        (lambda y: F.leaky_relu(y, -0.2), "leaky_relu of slope -0.2"),
    ],
)
def test_functional_activations_that_plt_does_not_know_are_refused(
    activation: Callable[[Tensor], Tensor], name: str
) -> None:
    class Uses(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(activation(self.bn(self.conv(x))))

    with pytest.raises(nbcompile.PreconditionError, match=rf"'conv' cannot be expanded: .* \({name}\)"):
        nbcompile.expand(Uses(), X, where=["conv"])


@pytest.mark.parametrize(
    "six", [lambda y: F.hardtanh(y, 0, 6), lambda y: y.clamp(0, 6), lambda y: y.clamp(min=0, max=6)]
)
def test_relu6_in_other_words(six: Callable[[Tensor], Tensor]) -> None:
    class Uses(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(six(self.bn(self.conv(x))))

    giant = nbcompile.expand(Uses(), X, where=["conv"])
    assert [block.spec.activation.name for block in sites(giant).values()] == ["relu6"]


def test_which_tensors_learn_is_kept() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).double()
    model[0].weight.requires_grad_(False)
    giant = giant_of(model, X, where=["0"], preserve=True)
    assert giant.get_parameter("0.original.bias").requires_grad
    tiny = nbcompile.fuse(giant)
    assert [p.requires_grad for p in tiny.parameters()] == [False, True]


def test_a_frozen_layer_is_refused_unless_it_is_preserved() -> None:
    model = Net()
    model.conv.requires_grad_(False)
    with pytest.raises(nbcompile.PreconditionError, match=r"'conv' cannot be expanded: it is frozen"):
        nbcompile.expand(model, X, where=["conv"])
    assert nbcompile.expand(model, X, where=["conv"], preserve=True)


def test_a_subclass_that_changes_nothing_is_a_site() -> None:
    class MyConv(nn.Conv2d):
        pass

    model = Net()
    model.conv = MyConv(3, 4, 1, bias=False).double()
    giant = assert_comes_back(model, X)
    assert type(nbcompile.fuse(giant).get_submodule("conv")) is MyConv


class Loud(nn.Module):
    """A sum that reads a value, so that it stays one node of a graph."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x + y) * (3 if x.isfinite().all() else 1)


class Named(nn.Module):
    """A module is not what its name says."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.add = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1), Loud()
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.add(self.a(x), self.b(x))


class Pool2d(nn.AvgPool2d):
    """A class of its own, nor what its base class is."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (3 if x.isfinite().all() else 1)


class Draws(nn.Module):
    """A weight that is drawn anew for every input."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.chance = (
            nn.Parameter(torch.full((4, 3, 1, 1), 9.0)),
            nn.Parameter(torch.full((4, 3, 1, 1), 0.5)),
        )
        self.bn = nn.BatchNorm2d(4)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(F.conv2d(x, torch.binomial(self.count, self.chance)))


@pytest.mark.parametrize("model", [Named(), nn.Sequential(nn.Conv2d(3, 4, 1), Pool2d(1)).double().eval(), Draws()])
def test_what_only_looks_like_an_affine_operator_is_left_alone(model: nn.Module) -> None:
    tiny = nbcompile.fuse(model, example_input=X)
    outputs = []
    for one in (model, tiny):
        torch.manual_seed(0)
        outputs.append(one(X))
    assert relative_error(*outputs) < 1e-12
    if isinstance(model, Draws):
        assert not torch.equal(tiny(X), tiny(X))


def test_a_padding_of_another_name_with_a_hook() -> None:
    class Ring(nn.ZeroPad2d):
        pass

    model = nn.Sequential(Ring(1), nn.Conv2d(3, 4, 3)).double().eval()
    model[0].register_forward_hook(lambda _, __, y: y + 1)
    assert relative_error(model(X), nbcompile.fuse(model, example_input=X)(X)) < 1e-12
