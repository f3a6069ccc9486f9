import dataclasses
import inspect
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import nbcompile
from nbcompile import CheckpointError, UsageError
from nbcompile.cli.app import run_cli
from nbcompile.cli.train import train_command
from nbcompile.core.options import options_of
from nbcompile.models import build
from nbcompile.training import TrainConfig, train
from nbcompile.training.command import run_train
from nbcompile.training.data.digits import load_digits

MODEL = "nbcompile:dscnn?num_classes=10&in_channels=1"
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 256, "warmup_epochs": 1, "accelerator": "cpu"}


def test_a_model_string(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_train(MODEL, output=tmp_path / "trained.pt", method="vanilla", lr=None, **SHORT)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == "vanilla on digits: 2 epochs of 5 steps"
    assert len(captured.err.splitlines()) == 3
    loaded = nbcompile.load(tmp_path / "trained.pt")
    trained = result.model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("name", ["trained-run/result.json", "trained-run/best.ckpt", "trained-run/tiny.onnx"])
def test_what_else_is_written_is_none_of_the_runs_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trained-run").mkdir()
    words = [
        "train",
        MODEL,
        "-o",
        str(tmp_path / "trained.pt"),
        "--data",
        "digits",
        "--epochs",
        "1",
        "--json",
        str(tmp_path / name),
    ]
    monkeypatch.setattr("sys.argv", ["nbcompile", *words])
    with pytest.raises(SystemExit) as stop:
        run_cli()
    assert stop.value.code == 2
    assert "another output is the same file" in " ".join(capsys.readouterr().err.split())
    assert not any((tmp_path / "trained-run").iterdir())
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match="it is what is read"):
        run_train(MODEL, output=tmp_path / "trained.pt", method="kd", teacher=str(tmp_path / name), quiet=True, **SHORT)


@pytest.mark.slow
def test_the_seed_decides_the_initial_weights(tmp_path: Path) -> None:
    losses = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        result = run_train(MODEL, output=tmp_path / "trained.pt", method="vanilla", quiet=True, **SHORT)
        losses.append([epoch.loss for epoch in result.history])
    assert losses[0] == losses[1]


def test_a_giants_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    giant = nbcompile.expand(build(MODEL).model, torch.zeros(1, 1, 8, 8), where="last:1", ratio=2)
    nbcompile.save(giant, tmp_path / "giant.pt")
    path = str(tmp_path / "giant.pt")
    result = run_train(path, output=tmp_path / "trained.pt", method="netbooster", quiet=True, **SHORT)
    assert result.history[-1].slope == 1.0
    assert capsys.readouterr().err == ""
    tiny = nbcompile.fuse(nbcompile.load(tmp_path / "trained.pt"))
    build(MODEL).model.load_state_dict(tiny.state_dict())


@pytest.mark.slow
def test_a_stand_in_says_what_it_cannot_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("nbcompile"), "propagate", True)  # the command line stops it
    file = tmp_path / "plain.pt"
    nbcompile.save(nbcompile.zoo.dscnn(), file, torch.zeros(1, 1, 8, 8))  # no MODEL is known
    run_train(str(file), output=tmp_path / "a.pt", method="vanilla", quiet=True, **SHORT)
    assert "traced in eval mode (dropout is inactive); --model gives the class" in caplog.text
    caplog.clear()
    result = run_train(str(file), output=tmp_path / "b.pt", model=MODEL, method="vanilla", quiet=True, **SHORT)
    assert type(result.model) is type(nbcompile.zoo.dscnn())
    assert caplog.text == ""


@pytest.mark.slow
def test_a_folder_of_images_at_the_models_size(folder: Path, tmp_path: Path) -> None:
    model = "nbcompile:dscnn?num_classes=2&in_channels=3"
    options = SHORT | {"batch_size": 3, "data": f"imagefolder:{folder}"}
    result = run_train(model, output=tmp_path / "trained.pt", method="netbooster", quiet=True, **options)
    assert [epoch.step for epoch in result.history] == [2, 4]
    assert result.accuracy in (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize(
    ("model", "options", "error", "sentence"),
    [
        (MODEL, {"learning_rate": 1}, UsageError, "no training option is called learning_rate"),
        ("nbcompile:dscnn?num_classes=5&in_channels=1", {}, UsageError, "digits has 10 classes: write MODEL"),
        ("nbcompile:nothing", {}, UsageError, "nothing"),
        (__file__, {}, CheckpointError, "test_command.py"),
        ("missing.pt", {}, CheckpointError, "missing.pt"),
        (MODEL, {"model": MODEL}, UsageError, "go with a file"),
    ],
)
def test_refuses(model: str, options: dict[str, Any], error: type[Exception], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=sentence):
        run_train(model, output=tmp_path / "trained.pt", method="vanilla", **SHORT, **options)


def test_every_option_of_the_command_line_is_a_field() -> None:
    about_files = {"trained", "output", "model", "key", "input", "run_dir", "resume", "check_export", "json"}
    options = set(inspect.signature(train_command).parameters) - about_files
    assert options == {field.name for field in dataclasses.fields(TrainConfig)}


def test_restarts_are_epochs() -> None:
    read = options_of(TrainConfig)["restarts"].read
    assert read is not None
    assert read("25,40") == (25, 40)
    with pytest.raises(UsageError, match=r"^--restarts must be epochs with commas, such as 25,40, not '25;40'$"):
        read("25;40")


@pytest.mark.slow
def test_a_file_can_teach(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("nbcompile"), "propagate", True)  # the command line stops it
    options = {"method": "kd", "quiet": True, **SHORT}
    run_train(MODEL, output=tmp_path / "teacher.pt", method="vanilla", quiet=True, **SHORT)
    taught = run_train(MODEL, output=tmp_path / "a.pt", teacher=str(tmp_path / "teacher.pt"), **options)
    assert caplog.text == ""
    guessed = run_train(MODEL, output=tmp_path / "b.pt", teacher=MODEL, **options)
    assert f"the teacher '{MODEL}' is built without weights: it has learned nothing yet" in caplog.text
    assert taught.history[-1].loss != guessed.history[-1].loss
    weights = tmp_path / "weights.pt"
    torch.save(nbcompile.load(tmp_path / "teacher.pt").state_dict(), weights)
    again = run_train(MODEL, output=tmp_path / "c.pt", teacher=str(weights), teacher_model=MODEL, **options)
    assert [e.loss for e in again.history] == [e.loss for e in taught.history]
    two = tmp_path / "two.pt"
    held = torch.load(weights)
    torch.save({"state_dict": {k: torch.zeros_like(x) for k, x in held.items()}, "mine": held}, two)
    keyed = run_train(
        MODEL, output=tmp_path / "c.pt", teacher=str(two), teacher_model=MODEL, teacher_key="mine", **options
    )
    assert [e.loss for e in keyed.history] == [e.loss for e in taught.history]
    with pytest.raises(UsageError, match=r"^teacher= goes with a foreign teacher$"):
        train(build(MODEL).model, TrainConfig(**SHORT), tmp_path / "d.pt", teacher=build(MODEL).model)
    with pytest.raises(UsageError, match=r"^method 'kd' needs teacher=, a network$"):
        train(build(MODEL).model, TrainConfig(method="kd", teacher="x", **SHORT), tmp_path / "d.pt")


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    spec = MODEL.replace("num_classes=10", "num_classes=7")
    with pytest.raises(UsageError, match=rf"^the teacher {re.escape(spec)} \(InvertedResidualNet\) gives .*10 classes"):
        run_train(MODEL, output=tmp_path / "a.pt", method="kd", teacher=spec, quiet=True, **SHORT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_data_that_is_loaded_already(tmp_path: Path) -> None:
    config = TrainConfig(method="vanilla", data="never:read", **SHORT)
    result = train(build(MODEL).model, config, tmp_path / "a.pt", data=load_digits())
    assert result.data == "digits"
