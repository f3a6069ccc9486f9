"""What a run leaves in its folder."""

import json
import logging
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import nbcompile
from nbcompile.core.blocks import sites
from nbcompile.training import Epoch, TrainConfig, TrainResult, train
from nbcompile.training.data.load import load_data
from nbcompile.training.outputs import run_folder
from nbcompile.training.outputs.curves import save_curves
from nbcompile.training.outputs.run_folder import RunFolder
from tests.training.stopping import StopError, stop_after

OPTIONS: dict[str, Any] = {
    "method": "netbooster", "where": "all", "ratio": 2, "epochs": 4, "giant_epochs": 1, "plt_epochs": 2,
    "batch_size": 256, "warmup_epochs": 1, "accelerator": "cpu",
}  # fmt: skip


def points(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: by tag, (step, value)."""
    with warnings.catch_warnings():  # TensorBoard's own affair with the protobuf that is installed
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        seen = EventAccumulator(str(run)).Reload()
    return {tag: [(point.step, point.value) for point in seen.Scalars(tag)] for tag in seen.Tags()["scalars"]}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10)
    )  # fmt: skip


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run that was stopped twice."""
    config, output = TrainConfig(**OPTIONS), tmp_path_factory.mktemp("resumed") / "trained.pt"
    for epoch in (1, 3):
        with pytest.raises(StopError):
            train(network(), config, output, resume=True, on_event=stop_after(epoch))
    return train(network(), config, output, resume=True)


def test_what_is_there(resumed: TrainResult) -> None:
    run = resumed.run_dir
    names = {path.name for path in run.iterdir()}
    (events,) = (name for name in names if name.startswith("events.out.tfevents."))
    assert names == {"config.json", "metrics.jsonl", "curves.png", "last.ckpt", "best.ckpt", "result.json", events}
    with Image.open(run / "curves.png") as picture:
        assert picture.format == "PNG"


def test_tensorboard_shows_every_epoch_once(resumed: TrainResult) -> None:
    found = points(resumed.run_dir)
    for tag, field in (("loss", "loss"), ("accuracy/train", "train_accuracy"), ("accuracy/val", "val_accuracy")):
        expected = [(epoch.step, pytest.approx(getattr(epoch, field))) for epoch in resumed.history]
        assert found.pop(tag) == expected
    assert found.pop("lr") == [(epoch.step, pytest.approx(epoch.lr)) for epoch in resumed.history]
    assert found == {"slope": [(5, 0.0), (10, 0.5), (15, 1.0), (20, 1.0)]}


def test_config_says_what_was_left_open(net: nn.Module, tmp_path: Path) -> None:
    open_ones = {name: value for name, value in OPTIONS.items() if not name.endswith("_epochs")}
    train(net, TrainConfig(**open_ones), tmp_path / "trained.pt")
    resolved = json.loads((tmp_path / "trained-run" / "config.json").read_text())
    assert (resolved["warmup_epochs"], resolved["giant_epochs"], resolved["plt_epochs"]) == (0.8, 2, 1)
    assert TrainConfig.from_json(resolved).phases == TrainConfig(**open_ones).phases


def epoch(number: int, accuracy: float, slope: float | None, phase: str = "plt") -> Epoch:
    return Epoch(
        epoch=number, step=number, phase=phase, loss=1.0, train_accuracy=0.5, val_accuracy=accuracy, slope=slope,
        lr=0.1, seconds=1.0,
    )  # fmt: skip


def test_best_is_the_most_accurate_network_that_can_be_fused(net: nn.Module, tmp_path: Path) -> None:
    folder, history, kept = RunFolder(tmp_path), [], []
    rows = [(0.5, 0.0), (0.8, 0.0), (0.8, 0.5), (0.6, 1.0), (0.7, 1.0), (0.7, 1.0), (0.65, 1.0)]
    for number, (accuracy, slope) in enumerate(rows):
        history.append(epoch(number, accuracy, slope))
        folder.keep(nn.Sequential(nn.Linear(2, number + 1)), history)
        kept.append(len(torch.load(folder.best, weights_only=True)["state_dict"]["0.bias"]) - 1)
    assert kept == [0, 1, 1, 3, 4, 4, 4]


def test_best_is_proven_where_the_file_holds_no_network_of_its_phase(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proofs: list[bool] = []

    def save(model: nn.Module, path: Path, *, proof: bool) -> None:
        proofs.append(proof)
        path.touch()

    monkeypatch.setattr(run_folder, "save", save)
    folder, history = RunFolder(tmp_path), []
    rising = (("giant", 0.2), ("giant", 0.3), ("giant", 0.3), ("plt", 0.1), ("plt", 0.4), ("plt", 0.5))
    for number, (phase, accuracy) in enumerate(rising):
        history.append(epoch(number, accuracy, None, phase))
        folder.keep(net, history)
    assert proofs == [True, False, True, False], "the third epoch is no better, nor is the first of plt"
    folder.best.unlink()
    folder.keep(net, [*history, epoch(7, 0.6, None)])
    assert proofs[-1]
    folder.keep(net, [epoch(1, 0.2, None, "int8")])
    assert proofs[-1], "the file is of before"


def test_best_is_read_back(resumed: TrainResult) -> None:
    linear = [epoch for epoch in resumed.history if epoch.slope == 1.0]
    best = nbcompile.load(resumed.run_dir / "best.ckpt").eval()
    assert sites(best)
    images, labels = load_data(TrainConfig(**OPTIONS)).val[list(range(360))]  # type: ignore[misc]
    with torch.no_grad():
        right = (nbcompile.fuse(best)(images).argmax(1) == labels).sum().item()
    assert right / 360 == pytest.approx(max(epoch.val_accuracy for epoch in linear), abs=1.5 / 360)


@pytest.mark.slow
def test_another_run_takes_the_place_of_a_finished_one(net: nn.Module, tmp_path: Path) -> None:
    train(net, TrainConfig(**OPTIONS), tmp_path / "trained.pt")
    again = train(net, TrainConfig(**(OPTIONS | {"method": "vanilla", "epochs": 2})), tmp_path / "trained.pt")
    assert [step for step, _ in points(again.run_dir)["loss"]] == [5, 10]
    assert not sites(nbcompile.load(again.run_dir / "best.ckpt"))


def test_says_once_what_is_not_written_without_its_package(
    net: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logging.getLogger("nbcompile")
    monkeypatch.setattr(log, "handlers", [])  # pytest has one here, too, where the command line stopped propagation
    monkeypatch.setattr(log, "propagate", True)
    import_module("lightning")  # it needs matplotlib, where that is there
    for package in ("tensorboard", "matplotlib"):
        monkeypatch.setitem(sys.modules, package, None)
    train(net, TrainConfig(**(OPTIONS | {"method": "vanilla", "epochs": 2})), tmp_path / "trained.pt")
    assert caplog.messages == [
        "method 'vanilla' has no use for giant_epochs, plt_epochs, ratio, where: left aside",
        "no events for TensorBoard: tensorboard is not installed, pip install 'nbcompile[train]'",
        "no curves.png: matplotlib is not installed, pip install 'nbcompile[train]'",
    ]
    names = {path.name for path in (tmp_path / "trained-run").iterdir()}
    assert names == {"config.json", "metrics.jsonl", "last.ckpt", "best.ckpt", "result.json"}


def test_a_folder_that_is_called_like_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One beside the script, for logs say, is found as a package, of which nothing can be imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "tensorboard").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert find_spec("tensorboard") is not None
    assert not run_folder._is_there("tensorboard")


@pytest.mark.parametrize(("metric", "said"), [("accuracy", "training"), ("AP50", "training: found")])
def test_curves_say_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, said: str) -> None:
    drawn: list[Any] = []

    def savefig(figure: Any, *_: Any, **__: Any) -> None:
        drawn.append(figure.axes[0])

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)
    save_curves([epoch(1, 0.5, None, "train")], tmp_path / "curves.png", metric)
    assert drawn[0].get_ylabel() == f"{metric}, %"
    assert [text.get_text() for text in drawn[0].get_legend().get_texts()] == ["validation", said]


@pytest.mark.parametrize("epochs", [1, 9])
def test_curves_of_short_and_long_runs(tmp_path: Path, epochs: int) -> None:
    phases = ["plain", "giant", "plt", "fine-tune"]
    history = [epoch(i + 1, 0.5, None if i < 3 else 1.0, phases[min(i // 2, 3)]) for i in range(epochs)]
    save_curves(history, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        panels = 3 if epochs == 1 else 4
        assert picture.size == (880, round(110 * 1.6 * (2.2 + panels - 1)))
