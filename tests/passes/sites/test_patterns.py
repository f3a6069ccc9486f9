from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from nbcompile import zoo
from nbcompile.passes.sites.patterns import PATTERNS, locate
from tests.symbolic import capture

tv = torchvision.models


def found(model: nn.Module) -> tuple[str, list[str]]:
    name, nodes = locate(capture(model))
    return name, [str(node.target) for node in nodes]


def meta(factory: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with torch.device("meta"):
            return factory()

    return build


@pytest.mark.parametrize(
    ("build", "pattern", "count", "first"),
    [
        (meta(tv.resnet18), "residual-basic", 8, "layer1.0.conv1"),
        (meta(tv.resnet50), "residual-bottleneck", 16, "layer1.0.conv1"),
        (meta(tv.mobilenet_v2), "inverted-residual", 16, "features.2.conv.0.0"),
        (meta(tv.mobilenet_v3_small), "inverted-residual", 10, "features.2.block.0.0"),
        (meta(tv.mobilenet_v3_large), "inverted-residual", 14, "features.2.block.0.0"),
        (meta(tv.efficientnet_b0), "inverted-residual", 15, "features.2.0.block.0.0"),
        (meta(tv.convnext_tiny), "ffn", 18, "features.1.0.block.3"),
        (meta(tv.vit_b_16), "ffn", 12, "encoder.layers.encoder_layer_0.mlp.0"),
        (tv.regnet_y_400mf, "residual-bottleneck", 16, "trunk_output.block1.block1-0.f.a.0"),
        (tv.regnet_x_400mf, "residual-bottleneck", 22, "trunk_output.block1.block1-0.f.a.0"),
        (meta(tv.vgg11_bn), "conv-norm-act", 8, "features.0"),
        (meta(tv.densenet121), "conv-norm-act", 59, "features.conv0"),
        (meta(tv.vgg11), "conv-act", 8, "features.0"),
        (meta(tv.alexnet), "conv-act", 5, "features.0"),
        (meta(tv.squeezenet1_1), "conv-act", 26, "features.0"),
    ],
)
def test_torchvision(build: Callable[[], nn.Module], pattern: str, count: int, first: str) -> None:
    name, layers = found(build())
    assert (name, len(layers), layers[0]) == (pattern, count, first)


@pytest.mark.parametrize(
    ("model", "pattern", "count", "first"),
    [
        ("resnet18", "residual-basic", 8, "layer1.0.conv1"),
        ("resnet50", "residual-bottleneck", 16, "layer1.0.conv1"),
        ("mobilenetv2_100", "inverted-residual", 16, "blocks.1.0.conv_pw"),
        ("mobilenetv3_small_100", "inverted-residual", 10, "blocks.1.0.conv_pw"),
        ("efficientnet_b0", "inverted-residual", 15, "blocks.1.0.conv_pw"),
        ("convnext_atto", "ffn", 12, "stages.0.blocks.0.mlp.fc1"),
        ("deit_tiny_patch16_224", "ffn", 12, "blocks.0.mlp.fc1"),
        ("regnetx_002", "residual-bottleneck", 13, "s1.b1.conv1.conv"),
        ("repvgg_a0", "conv", 44, "stem.conv_1x1.conv"),
        ("legacy_seresnet18", "conv-norm-act", 17, "layer0.conv1"),
    ],
)
def test_timm(model: str, pattern: str, count: int, first: str) -> None:
    name, layers = found(timm.create_model(model))
    assert (name, len(layers), layers[0]) == (pattern, count, first)


@pytest.mark.parametrize(("name", "count"), [("mobilenetv2_tiny", 16), ("mcunet", 17), ("dscnn", 5)])
def test_the_papers_networks(name: str, count: int) -> None:
    assert [len(found(zoo.NETWORKS[name].factory())[1])] == [count]


class Chain(nn.Module):
    """One layer of each kind, with what stands between them given by name."""

    def __init__(self, *, widths: tuple[int, int, int] = (4, 8, 4), groups: int = 8, order: str = "") -> None:
        super().__init__()
        c, h, m = widths
        self.a, self.na = nn.Conv2d(c, h, 1), nn.BatchNorm2d(h)
        self.b, self.nb = nn.Conv2d(h, h, 3, padding=1, groups=groups), nn.BatchNorm2d(h)
        self.c, self.nc = nn.Conv2d(h, m, 1), nn.BatchNorm2d(m)
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.na(self.a(x)))
        if self.order == "tapped":
            return self._rest(y) + y.mean()
        return self._rest(y)

    def _rest(self, y: Tensor) -> Tensor:
        y = F.dropout(y, training=self.training)
        height = y.shape[2]
        z: Tensor = self.nc(self.c(F.relu(self.nb(self.b(y)))))
        return F.relu(z) if self.order == "act" else z.narrow(2, 0, height)


@pytest.mark.parametrize(
    ("model", "pattern"),
    [
        (Chain(), "inverted-residual"),  # through dropout and a question for the shape
        (Chain(groups=4), "conv-norm-act"),  # not depthwise
        (Chain(widths=(8, 8, 4)), "conv-norm-act"),  # not widening
        (Chain(order="act"), "conv-norm-act"),  # no linear bottleneck
        (Chain(order="tapped"), "conv-norm-act"),  # the hidden map is read elsewhere
    ],
)
def test_what_an_inverted_residual_is(model: nn.Module, pattern: str) -> None:
    assert found(model)[0] == pattern


class Gated(nn.Module):
    """Squeeze and excitation after the depthwise layer, written with functions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 4, 1)
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.b(F.hardswish(self.a(x))))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        z: Tensor = self.c(y)
        return x + z


def test_gates_are_seen_through() -> None:
    assert found(Gated()) == ("inverted-residual", ["a"])


class Residual(nn.Module):
    def __init__(self, *, shortcut: str) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.b, self.nb = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.s, self.ns = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.nb(self.b(F.relu(self.na(self.a(x)))))
        match self.shortcut:
            case "identity":
                return F.relu(y + x)
            case "projection":
                return F.relu(self.ns(self.s(x)).add_(y))
            case "constant":
                return F.relu(y + 1.0)
            case _:
                return F.relu(y + torch.ones(4, 1, 1))


@pytest.mark.parametrize(
    ("shortcut", "pattern"),
    [
        ("identity", "residual-basic"),
        ("projection", "residual-basic"),
        ("constant", "conv-norm-act"),
        ("tensor", "conv-norm-act"),
    ],
)
def test_what_a_shortcut_is(shortcut: str, pattern: str) -> None:
    assert found(Residual(shortcut=shortcut))[0] == pattern


def test_the_first_pattern_that_matches_anywhere_wins() -> None:
    """A network of both kinds is expanded at its inverted residuals only."""
    assert found(nn.Sequential(Residual(shortcut="identity"), Chain())) == ("inverted-residual", ["1.a"])
    assert [pattern.name for pattern in PATTERNS] == [
        "inverted-residual",
        "residual-bottleneck",
        "residual-basic",
        "ffn",
        "conv-norm-act",
        "conv-act",
        "linear-act",
        "conv",
        "linear",
    ]


def test_a_layer_called_twice_is_one_candidate() -> None:
    block = Residual(shortcut="identity")
    assert found(nn.Sequential(block, block)) == ("residual-basic", ["0.a"])


class Branches(nn.Module):
    """RepVGG's block: three branches, norms inside, the activation behind the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.small = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.wide(x) + self.small(x) + self.norm(x))


class Squeezing(nn.Module):
    """Squeeze and excitation in a residual block: no feed-forward network of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze, self.excite = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        return x + y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))


@pytest.mark.parametrize(
    ("model", "pattern", "layers"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)), "conv-act", ["0"]),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(4, 2), nn.GELU(), nn.Linear(2, 2)), "linear-act", ["1"]),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 2)), "conv", ["0"]),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "linear", ["1"]),
        (Branches(), "conv", ["wide.0", "small.0"]),
        (Squeezing(), "conv-act", ["conv", "squeeze"]),
        (nn.Sequential(nn.ReLU()), "", []),
    ],
)
def test_something_is_found_wherever_there_is_a_layer(model: nn.Module, pattern: str, layers: list[str]) -> None:
    assert found(model) == (pattern, layers)


def test_layers_that_do_not_fit_are_no_candidates() -> None:
    """Where none of a pattern fits, the next is tried."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    gm = capture(model)
    first, _, second, _, last = model

    def names(*unfit: nn.Module) -> tuple[str, list[str]]:
        pattern, nodes = locate(gm, lambda layer: layer not in unfit)
        return pattern, [str(node.target) for node in nodes]

    assert names() == ("conv-act", ["0", "2"])
    assert names(first) == ("conv-act", ["2"])
    assert names(first, second) == ("conv", ["4"])
    assert names(first, second, last) == ("", [])


class Unit(nn.Module):
    """As RepVGG's: branches with norms of their own, and the activation behind their sum."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.wide, self.point = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(inputs, outputs, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norms[0](self.wide(x)) + self.norms[1](self.point(x)))


class WithHeads(nn.Module):
    """As RepVGGplus: auxiliary heads are all that the pattern 'conv-norm-act' finds."""

    def __init__(self, pack: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.a, self.b, self.c = Unit(3, 4), Unit(4, 4), Unit(4, 4)
        self.aux = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(4, 5) for _ in range(2))
        self.pack = pack

    def forward(self, x: Tensor) -> object:
        x = self.a(x)
        aux = self.heads[0](self.aux(x).mean((2, 3)))
        return self.pack(self.heads[1](self.c(self.b(x)).mean((2, 3))), aux)


TRUNK = [f"{unit}.{layer}" for unit in "abc" for layer in ("wide", "point")]


@pytest.mark.parametrize(
    ("pack", "heads"),
    [
        (lambda y, aux: {"aux": aux, "main": y}, ["aux.0"]),
        (lambda y, aux: (y, [aux]), ["aux.0"]),
        (lambda y, aux: y, []),  # computed, and read by nobody
    ],
)
def test_heads_do_not_choose_the_pattern(pack: Callable[[Tensor, Tensor], object], heads: list[str]) -> None:
    name, layers = found(WithHeads(pack))
    assert (name, sorted(layers)) == ("conv", sorted(TRUNK + heads))


def test_a_head_alone_is_better_than_nothing() -> None:
    """No layer that fits is on the way to the main output."""
    model = WithHeads(lambda y, aux: (y, aux))
    gm = capture(model)
    name, nodes = locate(gm, lambda layer: layer is model.aux[0])
    assert (name, [str(node.target) for node in nodes]) == ("conv-norm-act", ["aux.0"])


def test_what_is_written_into_an_output_is_on_its_way() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.a(x)
            part, _ = y.chunk(2, 1)
            part.mul_(self.b(x))
            return y

    assert found(Writes()) == ("conv", ["a", "b"])
