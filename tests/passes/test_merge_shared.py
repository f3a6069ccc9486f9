"""Layers that are called several times take in the norm behind them, once."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nbcompile
from nbcompile.core.errors import PreconditionError
from nbcompile.core.tracing.capture import capture
from nbcompile.passes import MergeShared
from nbcompile.testing import check_pass, scramble_

X = torch.randn(2, 4, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Heads(nn.Module):
    """A head that two maps share, wired in one of several ways."""

    def __init__(self, how: str = "plain", layer: nn.Module | None = None) -> None:
        super().__init__()
        self.how = how
        self.down = nn.Conv2d(4, 4, 3, 2, 1)
        self.conv, self.norm = layer or nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.other, self.act = nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        match how:
            case "tied":
                self.third = nn.Conv2d(4, 4, 3, padding=1, bias=False)
                self.third.weight = self.conv.weight  # type: ignore[assignment]
            case "untracked":
                self.norm = nn.BatchNorm2d(4, track_running_stats=False)
            case "group norm":
                self.norm = nn.GroupNorm(2, 4)  # type: ignore[assignment]
            case "hooked":
                self.conv.register_forward_hook(lambda *_: None)
            case "aliased":
                self.again = self.conv
        scramble_(self)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.down(x)
        a, b = self.conv(x), (self.again if self.how == "aliased" else self.conv)(y)
        match self.how:
            case "own norms":
                return self.norm(a), self.other(b)
            case "one without":
                return self.norm(a), b
            case "read":
                return self.norm(a), self.norm(b), a.mean()
            case "elsewhere":
                return self.norm(a), self.norm(b), self.norm(y)
            case "in turn":
                return self.norm(a), self.norm(self.conv(self.act(self.norm(b))))
            case "tied":
                return self.norm(a), self.norm(b), self.third(y)
            case "statistics":
                return self.norm(a), self.norm(b), x + self.norm.running_mean.view(-1, 1, 1)
            case "twice":
                return self.norm(a), self.norm(self.norm(b))
        return self.act(self.norm(a)), self.act(self.norm(b))


@pytest.mark.parametrize("how", ["plain", "in turn", "aliased"])
def test_the_norm_goes_into_the_layer_once(how: str) -> None:
    model = Heads(how).double()
    result = check_pass(MergeShared(), model, X)
    places = 3 if how == "in turn" else 2
    assert (result.rewritten, result.skipped) == (("conv",), ())
    assert result.how == (f"conv <- conv + norm, in {places} places",)
    layers = {name for name, module in result.gm.named_modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)}
    assert layers == {"down", "conv"}
    assert sum(node.target == "conv" for node in result.gm.graph.nodes) == places
    assert result.gm.get_submodule("conv").bias is not None
    assert model.conv.bias is None


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="reflect"),
        nn.ConvTranspose2d(4, 4, 3, 2, 1),
        nn.Conv2d(4, 4, (3, 1), padding=(2, 0), dilation=(2, 1)),
    ],
)
def test_whatever_the_layer(layer: nn.Module) -> None:
    assert check_pass(MergeShared(), Heads(layer=layer).double(), X).rewritten == ("conv",)


class Rows(nn.Module):
    """A linear layer and its norm, at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(5, 5), nn.BatchNorm1d(5)
        scramble_(self)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.linear(torch.relu(self.norm(self.linear(x)))))
        return y


def test_a_linear_layer() -> None:
    x = torch.randn(7, 5, dtype=torch.float64)
    assert check_pass(MergeShared((x,)), Rows().double(), x).rewritten == ("linear",)


ALONE = {
    "own norms": (),
    "one without": (),
    "read": (),
    "group norm": (),
    "untracked": (),
    "hooked": (),
    "elsewhere": (("norm", "it is called elsewhere than behind 'conv', too"),),
    "twice": (("norm", "it is called elsewhere than behind 'conv', too"),),
    "tied": (("norm", "its numbers, or those of 'conv', are read elsewhere"),),
    "statistics": (("norm", "its numbers, or those of 'conv', are read elsewhere"),),
}


@pytest.mark.parametrize("how", list(ALONE))
def test_what_is_left_alone(how: str) -> None:
    result = check_pass(MergeShared(), Heads(how).double(), X)
    assert not result.modified
    assert tuple((skip.name, skip.reason) for skip in result.skipped) == ALONE[how]


def test_norms_in_training_mode_are_refused() -> None:
    gm = capture(Heads().double(), (X,))
    gm.get_submodule("norm").train()
    with pytest.raises(PreconditionError, match="'norm' is in training mode"):
        MergeShared()(gm)


class Drawn(nn.Module):
    """Two layers and two norms, called in a random order on random ones of the values before."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.layers = nn.ModuleList(self._layer(draw) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
        self.relu = nn.ReLU(inplace=draw.random() < 0.5)
        if draw.random() < 0.1:
            self.norms[1].weight = self.norms[0].weight  # type: ignore[assignment]
        kinds = draw.choices(["both", "layer", "norm", "relu", "add", "scale", "read"], [6, 1, 1, 1, 1, 1, 2], k=6)
        self.steps = [
            (kind, draw.randint(0, i), draw.randrange(2), draw.random() < 0.15, draw.random() < 0.4)
            for i, kind in enumerate(kinds)
        ]
        scramble_(self, seed)

    @staticmethod
    def _layer(draw: random.Random) -> nn.Module:
        size, mode = draw.choice([1, 3]), draw.choice(["zeros", "zeros", "reflect", "circular"])
        groups, bias = draw.choice([1, 2, 4]), draw.random() < 0.5
        return nn.Conv2d(4, 4, size, padding=size // 2, padding_mode=mode, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values, read = [x], []
        for kind, source, which, other, bent in self.steps:
            y, layer, norm = values[source], self.layers[which], self.norms[which ^ other]
            match kind:
                case "both":
                    y = norm(layer(y))
                    y = self.relu(y) if bent else y
                case "read":
                    inner = layer(y)
                    y = norm(inner)
                    read.append(inner.mean())
                case "add":
                    y = y + x
                case "scale":
                    y = y * 1.5
                case _:
                    y = {"layer": layer, "norm": norm, "relu": torch.relu}[kind](y)
            values.append(y)
        return (*values[-2:], *read)


def test_any_order_of_calls() -> None:
    merged = 0
    for seed in range(80):
        merged += check_pass(MergeShared(), Drawn(seed).double().eval(), X).modified
    assert merged > 5, "nothing was tried"


@pytest.mark.parametrize("how", ["plain", "own norms"])
def test_a_file_stores_shared_weights_once(how: str, tmp_path: Any) -> None:
    """Norms of their own stay behind a layer that is shared, rather than make a layer of each call."""
    onnx = pytest.importorskip("onnx")
    model, x = Heads(how).eval(), X.float()
    nbcompile.export(model, tmp_path / "heads.onnx", x)
    found = nbcompile.verify(model, tmp_path / "heads.onnx", x)
    assert found.passed, found.checks
    sizes = [tensor.dims for tensor in onnx.load(tmp_path / "heads.onnx").graph.initializer]
    assert sum(len(size) == 4 for size in sizes) == 2
