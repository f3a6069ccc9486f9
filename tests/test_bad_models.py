"""What is no model, or no good one, gets one sentence from every verb; what is merely odd works in all of them."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nbcompile
from nbcompile.core.errors import NBCompileError, PreconditionError, UsageError

X = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))
DEFINED = "the model must be a torch.nn.Module as its own code makes it, not "
META = "is on the meta device and has no values: load the weights first"


def layers() -> list[nn.Module]:
    first = [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    second = [nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    return [*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]


def net() -> nn.Sequential:
    return nn.Sequential(*layers())


def linear_giant(model: nn.Module) -> nn.Module:
    giant = nbcompile.expand(model, X, "all")
    nbcompile.PLT(giant, steps=1).step()
    return giant


VERBS: dict[str, Callable[[Any, Path], Any]] = {
    "fuse": lambda m, _: nbcompile.fuse(m),
    "fuse with an example": lambda m, _: nbcompile.fuse(m, example_input=X),
    "expand": lambda m, _: nbcompile.expand(m, X),
    "collapse_": lambda m, _: nbcompile.collapse_(m),
    "PLT": lambda m, _: nbcompile.PLT(m, steps=1),
    "verify": lambda m, _: nbcompile.verify(m, m, X),
    "verify's candidate": lambda m, _: nbcompile.verify(net(), m, X),
    "cost": lambda m, _: nbcompile.cost(m, X),
    "save": lambda m, folder: nbcompile.save(m, folder / "model.pt", X),
    "export to .pt": lambda m, folder: nbcompile.export(m, folder / "model.pt"),
    "export to .onnx": lambda m, folder: nbcompile.export(m, folder / "model.onnx", X),
    "load": lambda m, _: nbcompile.load("missing.pt", model=m),
}

NO_MODELS: dict[str, tuple[Callable[[], Any], type[NBCompileError], str]] = {
    "class": (lambda: nn.ReLU, UsageError, f"{DEFINED}the class ReLU: make one, as in ReLU(...)"),
    "state_dict": (
        lambda: net().state_dict(),
        UsageError,
        f"{DEFINED}weights alone (OrderedDict): load them into a model with load_state_dict, and give that",
    ),
    "scripted": (
        lambda: torch.jit.script(net().eval()),
        UsageError,
        f"{DEFINED}TorchScript: give the model that was scripted or traced",
    ),
    "exported": (
        lambda: torch.export.export(net().eval(), (X,)).module(),
        UsageError,
        f"{DEFINED}what torch.export made: give the model that was exported",
    ),
    "lazy": (
        lambda: nn.Sequential(nn.LazyConv2d(4, 3)),
        PreconditionError,
        "'0.weight' of Sequential has no shape yet: run the model once first",
    ),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", NO_MODELS)
def test_what_is_no_model(name: str, verb: str, tmp_path: Path) -> None:
    make, error, sentence = NO_MODELS[name]
    model = make()
    with pytest.raises(error) as caught:
        VERBS[verb](model, tmp_path)
    assert str(caught.value) == sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "verify's candidate"])
def test_a_text_is_no_model(verb: str, tmp_path: Path) -> None:  # as a candidate it is a file
    with pytest.raises(UsageError) as caught:
        VERBS[verb]("timm:resnet18", tmp_path)
    advice = "nbcompile.load reads files, and names of models are for the command line"
    assert str(caught.value) == f"{DEFINED}the text 'timm:resnet18': {advice}"


@pytest.mark.parametrize(
    ("verb", "giant", "sentence"),
    [
        ("fuse", True, f"fuse: '0.stages.0.layer.weight' {META}"),
        ("fuse", False, f"fuse: '0.weight' {META}"),
        ("collapse_", True, f"collapse_: '0.stages.0.layer.weight' {META}"),
        ("PLT", True, f"PLT: '0.stages.0.layer.weight' {META}"),
        ("verify", True, f"verify: '0.stages.0.layer.weight' {META}"),
        ("verify", False, f"verify: '0.weight' {META}"),
        ("verify's candidate", False, f"verify: '0.weight' {META}"),
        ("save", True, f"save: '0.stages.0.layer.weight' {META}"),
        ("export to .pt", False, f"export: '0.weight' {META}"),
        ("export to .onnx", False, f"export: '0.weight' {META}"),
    ],
)
def test_a_model_without_values(verb: str, giant: bool, sentence: str, tmp_path: Path) -> None:
    model = (linear_giant(net()) if giant else net()).to("meta")
    with pytest.raises(PreconditionError) as caught:
        VERBS[verb](model, tmp_path)
    assert str(caught.value) == sentence
    assert not list(tmp_path.iterdir())
    assert nbcompile.cost(model, X).macs > 0  # which needs none


class Silent(nn.Sequential):
    """Its ``train`` and ``eval`` return nothing."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)

    def eval(self) -> Any:
        super().train(False)


class Holds(nn.Module):
    """Keeps an object beside its network."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.net = net()
        self.net[3].kept = value

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("collapse_", "PLT", "load")])
@pytest.mark.parametrize("make", [lambda: Silent(*layers()), lambda: Holds(threading.Lock())], ids=["silent", "lock"])
def test_odd_ones_work(make: Callable[[], nn.Module], verb: str, tmp_path: Path) -> None:
    model = make()
    if verb == "verify's candidate":
        nbcompile.verify(make(), model, X, numbers=False).raise_on_failure()
    else:
        VERBS[verb](model, tmp_path)


def test_a_silent_giant_comes_back(tmp_path: Path) -> None:
    model = Silent(*layers())
    giant = linear_giant(model)
    nbcompile.collapse_(giant)
    nbcompile.save(giant, tmp_path / "giant.pt")
    for one in (giant, nbcompile.load(tmp_path / "giant.pt", model=Silent(*layers()))):
        tiny = nbcompile.fuse(one)
        assert isinstance(tiny, Silent)
        assert not any(module.training for module in tiny.modules())
        nbcompile.verify(giant, tiny).raise_on_failure()
