"""Where a feature can be seen, in networks of all kinds."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbcompile import UsageError
from nbcompile.training.methods.features import Feature, low_level_feature, named_feature

X = torch.zeros(1, 2, 21, 15)


class Functional(nn.Module):
    """Its maps come from functions: 11 × 8, 5 × 4, 3 × 2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.second = nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, padding=1)
        self.third, self.head = nn.Conv2d(6, 8, 3, 2, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.stem(x * 2)), 2)
        x = F.relu(self.second(x))
        return self.head(F.relu(self.third(F.hardswish(x))).mean((2, 3)))


class Gated(nn.Module):
    """A block with a shortcut and a squeezed gate, at the image's resolution; then stride 5."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(2, 4, 1), nn.ReLU(inplace=True)
        self.inner, self.gate = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.down, self.head = nn.Conv2d(4, 8, 5, 5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        y = self.inner(x)
        y = x + y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        y = self.act(y)
        return self.head(self.act(self.down(y)).mean((2, 3)))


def sequential() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        nn.Conv2d(4, 8, 3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


class Unsaid(Functional):
    """No graph says it, for a name that graphs need."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = nn.Identity()


@pytest.mark.parametrize(
    ("network", "feature"),
    [
        (Functional, Feature("hardswish", "third", False, (1, 6, 5, 4))),
        (Gated, Feature("act_1", "down", False, (1, 4, 21, 15))),
        (sequential, Feature("_0_2", "0.2", True, (1, 4, 11, 8))),
        (Unsaid, Feature("second", "second", True, (1, 6, 5, 4))),
    ],
)
def test_the_last_map_at_stride_4_that_all_paths_go_through(network: type[nn.Module], feature: Feature) -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert low_level_feature(model, X) == feature
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_network_that_never_gets_coarse() -> None:
    """Its last map is no low-level one."""
    layers = [nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Hardswish(), nn.Conv2d(4, 6, 1)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    assert low_level_feature(model, X).module == "2"


def test_names_of_layers_and_of_nodes() -> None:
    functional = Functional()
    assert named_feature(functional, X, "stem") == Feature("stem", "stem", True, (1, 4, 11, 8))
    assert named_feature(functional, X, "avg_pool2d") == Feature("avg_pool2d", "second", False, (1, 4, 5, 4))
    assert named_feature(sequential(), X, "0") == Feature("0", "0", True, (1, 4, 11, 8))
    assert named_feature(sequential(), X, "_0_1").module == "0.1"


@pytest.mark.parametrize(
    ("network", "name", "sentence"),
    [
        (Functional, "stom", r"^feature 'stom' is neither layer nor node, of Functional; close to it: stem$"),
        (Unsaid, "relu", r"^feature 'relu' is neither layer nor node, of Unsaid$"),
        (Functional, "head", r"^feature 'head' has the shape \(1, 3\): it must be a map, \(N, C, H, W\)$"),
        (Functional, "mean", r"^feature 'mean' has the shape \(1, 8\): it must be a map"),
        (Functional, "relu", r"^feature 'relu' is computed between functions, where it cannot be seen: name one that"),
        (Gated, "act", r"^feature 'act' is called 3 times in one pass: name what comes right before or behind$"),
    ],
)
def test_names_that_are_none(network: type[nn.Module], name: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        named_feature(network(), X, name)


def test_a_layer_that_is_not_called() -> None:
    model = sequential()
    model[0].register_module("spare", nn.Identity())
    model[0].forward = lambda x: model[0][2](model[0][1](model[0][0](x)))  # type: ignore[method-assign]
    with pytest.raises(UsageError, match=r"^feature '0\.spare' is a layer that is not called in training, of Sequen"):
        named_feature(model, X, "0.spare")


def test_nothing_is_fine_enough() -> None:
    patches = nn.Sequential(nn.Conv2d(2, 8, 5, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    sentence = (
        r"^Sequential has no map at stride 4 or less from its images of 21×15 that can be aligned: "
        r"name a feature, or leave adversarial at 0$"
    )
    with pytest.raises(UsageError, match=sentence):
        low_level_feature(patches, X)
    assert named_feature(patches, X, "1").shape == (1, 8, 4, 3)
