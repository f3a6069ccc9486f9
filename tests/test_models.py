import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import MobileNetV2

from nbcompile import zoo
from nbcompile.core.cost import cost
from nbcompile.core.errors import UsageError
from nbcompile.core.example import TensorSpec
from nbcompile.models import build, parse_inputs

FACTORIES = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, depth=1, note=None):
        super().__init__(*(nn.Conv2d(3, 3, 1) for _ in range(depth)))
        self.note = note

def broken():
    raise RuntimeError("no\\nsecond line")

def silent():
    raise KeyError

def nothing():
    return 3

model = Net()
number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a package of factories, unknown to ``sys.path``."""
    package = tmp_path / "factories"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(FACTORIES)
    (package / "bad.py").write_text("import no_such_package_of_mine\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "factories"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_torchvision() -> None:
    built = build("torchvision:mobilenet_v2?width_mult=0.35&num_classes=4")
    assert isinstance(built.model, MobileNetV2)
    assert built.model.training
    assert built.inputs == (TensorSpec((1, 3, 224, 224)),)
    assert built.spec == "torchvision:mobilenet_v2?width_mult=0.35&num_classes=4"
    assert built.model.classifier[1].out_features == 4


def test_torchvision_image_size() -> None:
    assert build("torchvision:vit_b_32?image_size=64&num_classes=2").inputs[0].shape == (1, 3, 64, 64)


def test_torchvision_downloads_no_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert isinstance(build("torchvision:lraspp_mobilenet_v3_large").model, nn.Module)
    assert not list(tmp_path.iterdir())


def test_timm() -> None:
    built = build("timm:vit_tiny_patch16_224?img_size=96&num_classes=3")
    assert built.inputs == (TensorSpec((1, 3, 96, 96)),)
    assert built.preprocessing["mean"] == (0.5, 0.5, 0.5)
    built = build("timm:mobilenetv3_small_050?in_chans=1")
    assert built.inputs == (TensorSpec((1, 1, 224, 224)),)
    assert built.preprocessing == {}
    assert build("timm:test_resnet.r160_in1k").inputs[0].shape == (1, 3, 160, 160)  # timm's own size


def test_nbcompile() -> None:
    assert build("nbcompile:mobilenetv2_tiny").inputs[0].shape == (1, 3, 144, 144)
    built = build("nbcompile:dscnn?num_classes=4&in_channels=3")
    assert isinstance(built.model, zoo.InvertedResidualNet)
    assert built.inputs[0].shape == (1, 3, 8, 8)


def test_the_model_remembers_its_input() -> None:
    assert cost(build("nbcompile:mcunet").model).macs == 81_785_520


@pytest.mark.usefixtures("here")
def test_factory_in_the_current_directory() -> None:
    built = build("factories.nets:Net?depth=2&note=a b", "1x3x9x9")
    assert len(built.model) == 2
    assert built.model.note == "a b"
    assert built.inputs == (TensorSpec((1, 3, 9, 9)),)


def test_input_wins_over_the_default() -> None:
    assert build("nbcompile:dscnn", "4x1x16x16").inputs == (TensorSpec((4, 1, 16, 16)),)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", "'resnet18' is no MODEL: write torchvision:NAME, timm:NAME, nbcompile:NAME or package"),
        ("mcunet", "did you mean nbcompile:mcunet?"),
        ("torchvision:", "'torchvision:' is no MODEL"),
        (":mcunet", "':mcunet' is no MODEL"),
        ("nbcompile:mcunet?", "option '' is not key=value"),
        ("nbcompile:mcunet?classes", "option 'classes' is not key=value"),
        ("nbcompile:mcunet?a-b=1", "option 'a-b=1' is not key=value"),
        (
            "nbcompile:mcunet?num_classes=1&num_classes=2",
            "option 'num_classes=2' is not key=value with a key of its own",
        ),
        ("nbcompile:mcunett", "nbcompile.zoo has no model 'mcunett'; close to it: mcunet"),
        ("nbcompile:mcunet?depth=3", "building 'nbcompile:mcunet?depth=3' failed: TypeError: "),
        ("torchvision:resnet181", "torchvision has no model 'resnet181'; close to it: resnet1"),
        ("torchvision:zzzzzzzzzz", "torchvision has no model 'zzzzzzzzzz'"),
        (
            "torchvision:fcn_resnet50?weights_backbone=DEFAULT",
            "option 'weights_backbone' is not taken: a MODEL is built without weights, and nothing is downloaded; save",
        ),
        ("timm:resnet18?checkpoint_path=x.pth", "option 'checkpoint_path' is not taken"),
        ("timm:mobilenetv2_36", "timm has no model 'mobilenetv2_36'; close to it: mobilenetv2_0"),
        ("timm:hf-hub:someone/something", "timm has no model 'hf-hub:someone/something'"),
        ("timm:resnet18.no_such_tag", "building 'timm:resnet18.no_such_tag' failed: RuntimeError: "),
        ("factories.nets:Net", "needs --input, such as --input 1x3x96x96: the input size of a factory is not known"),
    ],
)
def test_wrong_specs(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        build(spec)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no.such:thing", "importing no.such failed: ModuleNotFoundError: No module named 'no'"),
        ("factories.bad:thing", "importing factories.bad failed: ModuleNotFoundError: No module named 'no_such_"),
        ("factories.nets:Nett", "factories.nets has no 'Nett'; close to it: Net"),
        ("factories.nets:broken", "building 'factories.nets:broken' failed: RuntimeError: no$"),
        ("factories.nets:silent", "building 'factories.nets:silent' failed: KeyError$"),
        ("factories.nets:nothing", "'factories.nets:nothing' made a int, not a torch.nn.Module"),
        ("factories.nets:number", "'factories.nets:number' is a int, not a function or class that makes a model"),
        ("factories.nets:model", "'factories.nets:model' is a Net, not a function or class that makes a model"),
    ],
)
def test_wrong_factories(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(spec, "1x3x9x9")


@pytest.mark.parametrize(
    ("package", "spec", "way_out"),
    [
        ("torchvision", "torchvision:resnet18", "pip install 'nbcompile[train]'"),
        ("timm", "timm:resnet18", "pip install timm"),
    ],
)
def test_package_not_installed(monkeypatch: pytest.MonkeyPatch, package: str, spec: str, way_out: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # what Python itself does to block an import
    sentence = f"'{spec}' needs {package}, which is not installed: {way_out}"
    with pytest.raises(UsageError, match=re.escape(sentence)):
        build(spec)


def test_parse_inputs() -> None:
    assert parse_inputs("1x3x96x96") == (TensorSpec((1, 3, 96, 96), torch.float32),)
    assert [one.shape for one in parse_inputs("1x3x8x8,1x5")] == [(1, 3, 8, 8), (1, 5)]
    assert parse_inputs("16384x16384")[0].shape == (2**14, 2**14)  # the limit itself


@pytest.mark.parametrize("text", ["", "x", "1x", "1x0x3", "1x-3", "axb", "1,", ",1x3", "1x3.5", "1 x 3", "٣x3"])
def test_parse_input_refuses_nonsense(text: str) -> None:
    with pytest.raises(UsageError, match="is no shape: write positive sizes joined by x, such as 1x3x96x96"):
        parse_inputs(text)


def test_parse_input_refuses_the_absurd() -> None:
    with pytest.raises(UsageError, match="'16385x16384' has 268,451,840 elements; the limit is 268,435,456"):
        parse_inputs("16385x16384")
