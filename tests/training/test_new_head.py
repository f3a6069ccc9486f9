"""Transfer: the network stays, its last layer is new."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import nbcompile
from nbcompile import UsageError
from nbcompile.core.blocks import sites
from nbcompile.core.example import origin_of
from nbcompile.models import build
from nbcompile.spec_strings import with_option
from nbcompile.training import TrainConfig, train
from nbcompile.training.new_head import with_classes
from tests.slow import one_in

X = torch.randn(2, 3, 33, 31, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("spec", "head"),
    [
        ("torchvision:squeezenet1_1?num_classes=7", "classifier.1"),  # a convolution
        ("torchvision:mobilenet_v3_small?num_classes=7", "classifier.3"),
        ("timm:mobilenetv3_small_050?num_classes=7", "classifier"),
        ("nbcompile:mobilenetv2_tiny?num_classes=7", "classifier"),
    ],
)
def test_only_the_last_layer_is_new(spec: str, head: str) -> None:
    model = build(spec).model.eval()
    new = with_classes(model, 3, X)
    assert new(X).shape == (2, 3)
    assert model(X).shape == (2, 7)
    before, after = model.state_dict(), new.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rpartition(".")[0] for name in changed} == {head}
    origin = origin_of(new)
    assert origin is not None
    assert origin.model is not None
    build(origin.model).model.load_state_dict(after)


@pytest.mark.parametrize("ema", one_in(2, [0.9, 0.0]))
@pytest.mark.parametrize("method", ["netbooster", "vanilla"])
def test_a_network_of_a_class_of_the_user_is_transferred_from_its_file(
    net_for: Callable[..., nn.Module], tmp_path: Path, method: str, ema: float
) -> None:
    """Such a network comes back from a file as a GraphModule, whose copies forget what it was trained on."""
    example = torch.zeros(1, 1, 8, 8)
    start = net_for(3)
    if method == "netbooster":
        start = nbcompile.expand(start, example, where="all", ratio=2)
    nbcompile.save(start, tmp_path / "start.pt", example)
    phases = {"giant_epochs": 1, "plt_epochs": 1} if method == "netbooster" else {}
    config = TrainConfig(
        method=method, epochs=3, batch_size=256, new_head=True, ema=ema, accelerator="cpu", data="digits", **phases
    )
    loaded = nbcompile.load(tmp_path / "start.pt")
    before = origin_of(loaded)
    result = train(loaded, config, tmp_path / "trained.pt")
    assert origin_of(loaded) == before
    trained = nbcompile.load(tmp_path / "trained.pt").eval()
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert trained(images).shape == (5, 10)
    torch.testing.assert_close(trained(images), result.model.eval()(images))
    for model in (result.model, trained, nbcompile.load(tmp_path / "trained-run" / "best.ckpt")):
        origin = origin_of(model)
        assert origin is not None
        assert origin.inputs[0].shape == (1, 1, 8, 8)
        assert origin.preprocessing["scale"] == 1 / 16, "calibrating this file would scale images wrongly"


@pytest.mark.slow
def test_a_giant_with_a_new_head_comes_back_from_its_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("nbcompile"), "propagate", True)  # the command line stops it
    giant = nbcompile.expand(build("nbcompile:mobilenetv2_tiny?num_classes=7").model, X[:1])
    new = with_classes(giant, 3, X).eval()
    assert sites(new).keys() == sites(giant).keys()
    caplog.clear()
    torch.save(new.state_dict(), tmp_path / "giant.pt")
    loaded = nbcompile.load(tmp_path / "giant.pt").eval()
    assert caplog.text == "", "it was recorded with another head"
    torch.testing.assert_close(loaded(X), new(X))
    origin = origin_of(loaded)
    assert origin is not None
    assert origin.model == "nbcompile:mobilenetv2_tiny?num_classes=3"
    tiny = nbcompile.fuse(nbcompile.load(tmp_path / "giant.pt"), force=True)
    build(origin.model).model.load_state_dict(tiny.state_dict())


class Scaled(nn.Module):
    """Logits that no layer gives."""

    def __init__(self, groups: int = 1, inner: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Conv2d(6, inner, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.conv(x).relu()).mean((2, 3))
        return torch.cat([y, y], 1) if self.head.groups == 1 else y


def test_networks_without_a_last_layer_are_refused() -> None:
    with pytest.raises(UsageError, match="new_head: Scaled has no last layer that gives its 8 logits"):
        with_classes(Scaled(), 3, X)
    with pytest.raises(UsageError, match="new_head: 'head', the last layer of Scaled, is grouped: give it a new one"):
        with_classes(Scaled(groups=2), 3, X)
    giant = nbcompile.expand(build("nbcompile:mobilenetv2_tiny?num_classes=7").model, X[:1], where=["classifier"])
    with pytest.raises(UsageError, match=r"new_head: 'classifier', the last layer of .*, is expanded: expand others"):
        with_classes(giant, 3, X)


def test_an_option_is_set_in_a_model_string() -> None:
    assert with_option("timm:resnet18", "num_classes", 3) == "timm:resnet18?num_classes=3"
    given = "torchvision:vit_b_16?num_classes=5&image_size=64&name=a"
    assert with_option(given, "num_classes", 3) == given.replace("=5", "=3")
