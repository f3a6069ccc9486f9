import inspect
import os
import re
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import nbcompile
from nbcompile import PreconditionError, UsageError, exporters
from nbcompile.core.example import Origin, TensorSpec, remember
from nbcompile.core.progress import StepEvent, listening


def network() -> Any:
    torch.manual_seed(0)
    layers = OrderedDict(
        conv=nn.Conv2d(3, 4, 3, padding=1, bias=False),
        norm=nn.BatchNorm2d(4),
        act=nn.ReLU6(inplace=True),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        head=nn.Linear(4, 2),
    )
    model: Any = nn.Sequential(layers)
    for tensor in (model.norm.weight, model.norm.bias, model.norm.running_mean, model.norm.running_var):
        nn.init.uniform_(tensor, 0.5, 1.5)
    return model


X = torch.randn(1, 3, 9, 7)


def test_onnx_holds_the_deploy_form(tmp_path: Path) -> None:
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = nbcompile.export(model, tmp_path / "tiny.onnx", X)
    assert result.error <= 1e-5
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(result.path).graph.node}
    assert [layer.name for layer in exporters.ONNX.read_layers(result.path)] == ["conv", "head"]
    assert model.training
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_it_says_what_it_does(tmp_path: Path) -> None:
    """Whoever listens hears of every part that may take seconds, and that each has ended."""
    events: list[StepEvent] = []
    with listening(events.append):
        nbcompile.export(network(), tmp_path / "tiny.onnx", X)
        nbcompile.export(network(), tmp_path / "tiny.pt")
    begun = [" > ".join(event.path) for event in events if not event.ended]
    assert [name.removeprefix("writing tiny.onnx > ") for name in begun if "loading" not in name] == [
        "writing tiny.onnx",
        "making the deploy form",
        "making the deploy form > tracing the network",
        "making the deploy form > remove-identity",
        "making the deploy form > remove-unread",
        "making the deploy form > merge-common",
        "making the deploy form > merge-shared",
        "making the deploy form > merge-affine",
        "running the network in PyTorch",
        "capturing the graph",
        "expressing it in ONNX",
        "folding constants",
        "simplifying it",
        "naming its weights",
        "comparing it with PyTorch in ONNX Runtime",
        "writing tiny.pt",
        "writing tiny.pt > writing and reading back the weights",
    ]
    assert begun[0] == "loading what writing .onnx files needs"
    assert sorted(begun) == sorted(" > ".join(event.path) for event in events if event.ended)


def test_weights_need_no_example_and_no_graph(tmp_path: Path) -> None:
    model = network()
    for name in ("tiny.pt", "tiny.safetensors"):
        nbcompile.export(model, str(tmp_path / name))
    network().load_state_dict(torch.load(tmp_path / "tiny.pt", weights_only=True))


def test_the_example_may_be_remembered(tmp_path: Path) -> None:
    model = network()
    with pytest.raises(UsageError, match="export needs an example_input: Sequential does not remember"):
        nbcompile.export(model, tmp_path / "tiny.onnx")
    remember(model, Origin((TensorSpec((1, 3, 9, 7)),)))
    assert nbcompile.export(model, tmp_path / "tiny.onnx").error <= 1e-5


def test_wrappers_are_seen_through(tmp_path: Path) -> None:
    model = network()
    nbcompile.export(AveragedModel(model), tmp_path / "tiny.pt")
    assert set(torch.load(tmp_path / "tiny.pt", weights_only=True)) == set(model.state_dict())


def test_giants_are_refused(tmp_path: Path) -> None:
    giant = nbcompile.expand(network(), X, where=["conv"])
    with pytest.raises(PreconditionError, match=r"has 1 expansion blocks \(the first is 'conv'\): export what nbcomp"):
        nbcompile.export(giant, tmp_path / "tiny.onnx")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["tiny.onnx", "tiny.pt"])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path: Path, name: str) -> None:
    model = network()
    model.conv.weight.data[0, 0, 0, :2] = torch.tensor([float("nan"), float("inf")])
    with pytest.raises(PreconditionError, match=r"parameter 'conv.weight' has 2 of 108 values that are NaN or inf"):
        nbcompile.export(model, tmp_path / name, X)
    model = network()
    model.norm.running_var[1] = float("nan")
    with pytest.raises(PreconditionError, match=r"buffer 'norm.running_var' has 1 of 4 values"):
        nbcompile.export(model, tmp_path / name, X)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a.onnx", "a.tflite"])
@pytest.mark.parametrize(
    ("gives", "said"),
    [
        (lambda x: None, r"^Gives gives no tensor: return from its forward what is computed$"),
        (
            lambda x: (x, x.to(torch.complex64)),
            r"^output\[1\] of Gives is complex, which no file holds: return torch.view_a",
        ),
        (
            lambda x: {"a": x, "b": 3},
            r"^output\['b'\] of the model is of type int; only tensors, and tuples, lists, dicts",
        ),
        (lambda x: x @ x, r"^Gives does not run on the example input: RuntimeError: "),
    ],
)
def test_what_no_file_can_hold_is_said_first(gives: Any, said: str, name: str, tmp_path: Path) -> None:
    class Gives(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Any:
            return gives(self.conv(x))

    with pytest.raises(PreconditionError, match=said):
        nbcompile.export(Gives().eval(), tmp_path / name, X)
    assert not any(tmp_path.iterdir())


class Masked(nn.Module):
    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x + self.mask, -1)


class Part(nn.Module):
    kept: Tensor | float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.kept * 0.5 + x.mean()
        return x - self.kept


class Counts(nn.Module):
    """Keeps something, and no output depends on it."""

    seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x.relu()


class Draws(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_what_is_no_function_of_its_inputs_is_refused(tmp_path: Path, suffix: str) -> None:
    options = {"quantize": "float32"} if suffix == ".tflite" else {}
    path, model = tmp_path / f"x{suffix}", nn.Sequential(nn.Conv2d(3, 3, 1), Part()).eval()
    with pytest.raises(
        PreconditionError, match=r"because it keeps '1\.kept' from call to call, and a file keeps nothing: t"
    ):
        nbcompile.export(model, path, X, **options)
    assert model[1].kept == 0
    line = inspect.getsourcelines(Draws.forward)[1] + 1
    said = (
        rf"draws random numbers in eval mode at {re.escape(__file__)}:{line}, and a file draws none: remove that, or do"
    )
    with pytest.raises(PreconditionError, match=said):
        nbcompile.export(Draws().eval(), path, X, **options)
    hooked = nn.Sequential(nn.Conv2d(3, 3, 1), Draws()).eval()
    with pytest.raises(PreconditionError, match=said):  # a graph knows the lines that it was made of
        nbcompile.export(nbcompile.fuse(hooked, "all", example_input=X), path, X, **options)
    assert os.listdir(tmp_path) == []
    assert nbcompile.export(Counts().eval(), path, X, **options).path == path


def test_an_infinite_mask_is_no_mistake(tmp_path: Path) -> None:
    assert nbcompile.export(Masked(), tmp_path / "tiny.onnx", torch.randn(1, 2)).error <= 1e-5


def test_targets_are_checked_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the folder .*missing does not exist; create it first"):
        nbcompile.export(network(), tmp_path / "missing" / "tiny.onnx")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tiny.h5", r"the extension '.h5' is unknown; known are .onnx, .tflite, .pt, .safetensors"),
        ("tiny", r"it has no extension; known are .onnx, .tflite, .pt, .safetensors"),
    ],
)
def test_unknown_extensions_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        nbcompile.export(network(), tmp_path / name)


def test_extensions_in_capitals_are_known(tmp_path: Path) -> None:
    assert nbcompile.export(network(), tmp_path / "TINY.PT").format == "state_dict"


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'sram' is not an option of .onnx files; they have opset, dynamic_b"):
        nbcompile.export(network(), tmp_path / "tiny.onnx", X, sram="64K")
    with pytest.raises(UsageError, match=r"'opset' is not an option of .pt files; they have none"):
        nbcompile.export(network(), tmp_path / "tiny.pt", opset=18)


def forget(monkeypatch: pytest.MonkeyPatch, *prefixes: str) -> None:
    """Let modules be imported anew; afterwards ``sys.modules`` and their packages hold the old ones again."""
    modules = dict(sys.modules)
    for name in [name for name in modules if name.startswith(prefixes)]:
        parent, _, last = name.rpartition(".")
        if parent in modules and hasattr(modules[parent], last):
            monkeypatch.setattr(modules[parent], last, getattr(modules[parent], last))
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("package", ["tensorflow", "ai_edge_litert", "tflite_micro"])
def test_a_missing_package_for_devices_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    forget(monkeypatch, "nbcompile.exporters.", package)
    monkeypatch.setitem(sys.modules, package, None)
    install = rf"writing .tflite files needs {package}, which is not installed: pip install 'nbcompile\[tflite\]'"
    with pytest.raises(UsageError, match=install):
        nbcompile.export(network(), tmp_path / "tiny.tflite", X, quantize="float32")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, "nbcompile.exporters.")
    monkeypatch.setitem(sys.modules, "onnx", None)  # what Python itself does to forbid an import
    install = r"needs onnx, which is not installed: pip install 'nbcompile\[onnx\]'"
    with pytest.raises(UsageError, match=f"writing .onnx files {install}"):
        nbcompile.export(network(), tmp_path / "tiny.onnx", X)
    with pytest.raises(UsageError, match=f"reading .onnx files {install}"):
        exporters.ONNX.read_layers(tmp_path / "tiny.onnx")
    assert nbcompile.export(network(), tmp_path / "tiny.pt").format == "state_dict"
