"""A detector is trained by every method, resumed, exported, and refused where it cannot be."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nbcompile
from nbcompile import UsageError
from nbcompile.cli.app import run_cli
from nbcompile.core.example import origin_of
from nbcompile.detection.network import Detector
from nbcompile.training import TrainConfig, TrainResult, train
from nbcompile.training.command import run_train
from nbcompile.training.data.load import load_data
from nbcompile.training.methods import METHODS
from nbcompile.training.options.rules import check_boxes
from nbcompile.training.tasks.detection import Detection
from tests.boxes import Tower, annotation, write_voc
from tests.training.stopping import StopError, stop_after

SHORT: dict[str, Any] = {"input_size": 64, "epochs": 1, "batch_size": 4, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("voc"))


def tower() -> nn.Module:
    torch.manual_seed(0)
    return Tower()


def trained(voc: Path, output: Path, **options: Any) -> TrainResult:
    words = {"teacher", "resume", "on_event", "check_export", "model"}
    rest = {name: value for name, value in options.items() if name in words}
    if "teacher" in rest:
        options |= {"teacher": "net"}
    given = (
        SHORT
        | {"method": "vanilla", "data": f"voc:{voc}"}
        | {n: v for n, v in options.items() if n not in words - {"teacher"}}
    )
    return train(rest.pop("model", None) or tower(), TrainConfig(**given), output, **rest)


def outputs_of(model: nn.Module) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(model(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))))


def require_same(one: nn.Module, other: nn.Module, tolerance: float = 0.0) -> None:
    for x, y in zip(outputs_of(one), outputs_of(other), strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def test_a_classifier_gets_a_head_and_its_file_describes_itself(voc: Path, tmp_path: Path) -> None:
    result = trained(voc, tmp_path / "det.pt", ema=0.5)
    assert isinstance(result.model, Detector)
    assert (result.metric, result.history[0].val_accuracy) == ("AP50", result.accuracy)
    assert json.loads((tmp_path / "det-run" / "result.json").read_text())["metric"] == "AP50"
    loaded = nbcompile.load(tmp_path / "det.pt")
    require_same(loaded, result.model, 1e-6)
    boxes = origin_of(nbcompile.fuse(loaded)).preprocessing["boxes"]  # type: ignore[union-attr]
    task = load_data(TrainConfig(data=f"voc:{voc}", input_size=64)).task
    assert isinstance(task, Detection)
    assert boxes == task.coding.to_json()


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [row.name for row in METHODS.values() if row.name != "vanilla" and not row.classes_only]
)
def test_every_method_trains_one(voc: Path, tmp_path: Path, method: str) -> None:
    options: dict[str, Any] = {"where": "last:2"} if "rocket" in METHODS[method].name else {}
    if METHODS[method].distils:
        options["teacher"] = trained(voc, tmp_path / "teacher.pt").model
    result = trained(voc, tmp_path / "det.pt", method=method, **SHORT | {"epochs": 2} | options)
    assert all(torch.isfinite(torch.tensor(epoch.loss)) for epoch in result.history)
    assert (result.fused_accuracy is None) == (not (METHODS[method].expands or METHODS[method].widens))
    loaded = nbcompile.load(tmp_path / "det.pt")
    require_same(nbcompile.fuse(loaded), loaded, 1e-3)
    shapes = {name: tuple(p.shape) for name, p in Detector(tower(), 2).named_parameters() if p.ndim == 4}
    assert {name: tuple(p.shape) for name, p in nbcompile.fuse(loaded).named_parameters() if p.ndim == 4} == shapes


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"method": "tf-kd"}, "method 'tf-kd'"),
        ({"method": "rco", "teacher": "a.pt,b.pt"}, "method 'rco'"),
        ({"method": "mimic", "teacher": "a.pt", "unlabeled": "digits"}, "method 'mimic'"),
        ({"method": "kd", "teacher": "a.pt", "stored_labels": "labels"}, "stored_labels"),
        ({"method": "kd", "teacher": "a.pt", "labels": "none", "kd_mixup": 0.2}, "kd_mixup"),
        ({"method": "kd", "teacher": "a.pt", "same_view": False}, "other_view"),
        ({"method": "kd", "teacher": "a.pt,b.pt"}, "more than one teacher"),
        ({"augment": "cutmix"}, "augment 'cutmix'"),
        ({"sizes": (64, 96), "input_size": 96, "epochs": 2}, "sizes"),
        ({"method": "netbooster", "epochs": 4, "rise": "cheapest-first"}, "rise 'cheapest-first'"),
        ({"method": "netbooster", "epochs": 4, "plt_loss": 0.1}, "plt_loss"),
    ],
)
def test_what_goes_with_one_class_an_image(options: dict[str, Any], what: str) -> None:
    given = {"method": "vanilla", **SHORT, **options}
    with pytest.raises(UsageError, match=f"^{what} goes with one class an image, and the labels of voc:DIR are boxes$"):
        check_boxes(TrainConfig(**given), "voc:DIR")
    check_boxes(TrainConfig(method="kd", teacher="a.pt"), "voc:DIR")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["netbooster", "vanilla"])
def test_a_stopped_run_ends_with_the_same_bits(voc: Path, tmp_path: Path, method: str) -> None:
    options = SHORT | {"epochs": 2, "ema": 0.9, "accumulate": 2}
    whole = trained(voc, tmp_path / "whole.pt", method=method, **options)
    with pytest.raises(StopError):
        trained(voc, tmp_path / "parts.pt", method=method, on_event=stop_after(1), **options)
    torch.rand(3)
    parts = trained(voc, tmp_path / "parts.pt", method=method, resume=True, **options)
    assert [epoch.loss for epoch in parts.history] == [epoch.loss for epoch in whole.history]
    one, two = (torch.load(tmp_path / f"{name}.pt", weights_only=True)["state_dict"] for name in ("whole", "parts"))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_a_detector_is_trained_on_with_the_anchors_of_its_file(voc: Path, tmp_path: Path) -> None:
    trained(voc, tmp_path / "one.pt")
    model = nbcompile.load(tmp_path / "one.pt")
    others = write_voc(tmp_path / "others", train=5)
    file = others / "VOCdevkit" / "VOC2007" / "Annotations" / "train0.xml"
    file.write_text(annotation([("red", (1.0, 1.0, 80.0, 64.0))]))
    again = trained(others, tmp_path / "two.pt", model=model)
    boxes = [origin_of(one).preprocessing["boxes"] for one in (model, again.model)]  # type: ignore[union-attr]
    assert boxes[0] == boxes[1]
    with pytest.raises(
        UsageError, match=r"^the detector finds blue, red, and voc:.* has red, blue: give the network that it"
    ):
        trained(Path(f"{others}?classes=red,blue"), tmp_path / "three.pt", model=model)
    with pytest.raises(UsageError, match=r"^the teacher net has other anchors than the network, so that its maps mean"):
        trained(others, tmp_path / "three.pt", method="kd", teacher=model)
    with pytest.raises(
        UsageError, match=r"^new_head: a detector keeps its classes; give the network that it stands on"
    ):
        trained(others, tmp_path / "three.pt", model=model, new_head=True)


def test_what_does_not_fit_is_refused(voc: Path, tmp_path: Path) -> None:
    for size in (96 + 16, 32):
        with pytest.raises(UsageError, match=f"^a detector's input_size is a multiple of 32, 64 or more, not {size}$"):
            trained(voc, tmp_path / "x.pt", input_size=size)
    with pytest.raises(
        UsageError, match=r"gives maps of 24 channels, not 3 × \(5 \+ 2\) = 21, but voc:.* has 2 classes: give"
    ):
        trained(voc, tmp_path / "x.pt", model=Detector(tower(), 3))
    with pytest.raises(
        UsageError, match=r"^the teacher net \(Tower\) gives a Tensor in training, not the 2 maps of a det"
    ):
        trained(voc, tmp_path / "x.pt", method="kd", teacher=tower())
    with pytest.raises(UsageError, match=r"^a detector cannot stand on Sequential: it has no map at stride 16"):
        trained(voc, tmp_path / "x.pt", model=nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()))
    assert list(tmp_path.iterdir()) == []


def test_what_measures_it_is_missed_before_the_first_epoch(
    voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UsageError, match=r"^measuring AP50 needs pycocotools, which is not installed"):
        trained(voc, tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_half_precision_and_another_memory_format(voc: Path, tmp_path: Path) -> None:
    options = {"precision": "bf16-mixed", "channels_last": True}
    teacher = trained(voc, tmp_path / "teacher.pt", **options).model
    for method in ("kd", "netdistiller"):
        more = {"teacher": teacher} if method == "kd" else {}
        result = trained(voc, tmp_path / f"{method}.pt", method=method, **options, **more)
        assert torch.isfinite(torch.tensor(result.history[0].loss))


@pytest.mark.slow
def test_a_giant_gets_a_head_and_stays_one(voc: Path, tmp_path: Path) -> None:
    giant = nbcompile.expand(tower().eval(), torch.zeros(1, 3, 64, 64), where="uniform:0.5", ratio=2)
    result = trained(voc, tmp_path / "det.pt", model=giant, method="netbooster", epochs=2)
    assert result.fused_accuracy is not None
    loaded = nbcompile.load(tmp_path / "det.pt")
    require_same(nbcompile.fuse(loaded), loaded, 1e-3)


@pytest.mark.slow
def test_from_the_command_line(
    voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "nbcompile:mobilenetv2_35", "--data", f"voc:{voc}", "--input-size", "64", "--epochs", "1"]
    monkeypatch.setattr("sys.argv", ["nbcompile", *words, "--batch-size", "4", "--accelerator", "cpu", "-o", "det.pt"])
    with pytest.raises(SystemExit) as stop:
        run_cli()
    said = capsys.readouterr()
    assert not stop.value.code, said.err
    assert re.search(r"^AP50: \d+\.\d\d% \(vanilla on voc:", said.out, re.M)
    assert re.search(r"^epoch 1/1  train  loss \d+\.\d+  train \d+\.\d%  AP50 \d+\.\d%", said.err, re.M)
    loaded = nbcompile.load("det.pt")
    assert origin_of(loaded).model == "nbcompile:yolo?backbone=nbcompile:mobilenetv2_35&num_classes=2"  # type: ignore[union-attr]
    again = run_train("det.pt", output="again.pt", quiet=True, data=f"voc:{voc}", **SHORT)
    assert isinstance(again.model, Detector)


@pytest.mark.slow
def test_int8_and_onnx_are_measured(tmp_path: Path) -> None:
    more = write_voc(tmp_path / "more", train=24, val=8)
    result = trained(more, tmp_path / "det.pt", epochs=60, batch_size=8, check_export=True)
    assert result.notes == ()
    assert result.accuracy > 0.01
    assert result.onnx_accuracy == pytest.approx(result.accuracy, abs=1e-3)
    assert result.int8_accuracy == pytest.approx(result.accuracy, abs=0.1)


@pytest.mark.slow
def test_two_processes_end_with_the_same_network_and_the_same_ap(voc: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("ddp_detection.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, str(script), str(tmp_path), str(voc)]
    subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    model = nbcompile.load(tmp_path / "trained.pt").eval()
    data = load_data(TrainConfig(data=f"voc:{voc}", input_size=64))
    images, labels = data.val[list(range(len(data.val)))]  # type: ignore[misc]
    score = data.task.score()
    with torch.no_grad():
        score.add(model(images), labels)
    assert score.result(lambda *numbers: list(numbers)) == pytest.approx(first["accuracy"], abs=1e-6)
