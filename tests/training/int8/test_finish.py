"""From a run to its int8 file, as users go."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nbcompile
from nbcompile.core.errors import UsageError
from nbcompile.core.example import origin_of
from nbcompile.training import TrainConfig, TrainResult, train
from nbcompile.training.data.digits import load_digits
from nbcompile.training.deployed_accuracy import _int8_runner
from tests.training.conftest import make_net

CONFIG: dict[str, Any] = {"method": "vanilla", "epochs": 1, "batch_size": 128, "accelerator": "cpu", "ema": 0.5}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    torch.set_num_threads(1)
    config = TrainConfig(**CONFIG, int8=1, train_images=400)
    return train(make_net(), config, tmp_path_factory.mktemp("run") / "trained.pt")


def accuracy_of(path: Path) -> float:
    val = load_digits().val
    batch = val[list(range(len(val)))]
    assert not isinstance(batch, Exception)
    outputs = _int8_runner(path)(batch[0])
    return float((outputs.argmax(1) == batch[1]).double().mean())


def test_a_run_ends_with_a_file_that_needs_no_calibration(run: TrainResult, tmp_path: Path) -> None:
    assert [epoch.phase for epoch in run.history] == ["train", "int8"]
    assert run.history[-1].lr < 0.1 / 100
    keys = {key: x.shape for key, x in make_net().state_dict().items()}
    loaded = nbcompile.load(run.output)
    assert {key: x.shape for key, x in loaded.state_dict().items()} == keys
    result = nbcompile.export(nbcompile.fuse(loaded), tmp_path / "tiny.tflite")
    assert accuracy_of(result.path) == run.simulated_accuracy == run.history[-1].val_accuracy
    assert run.accuracy == pytest.approx(run.simulated_accuracy, abs=0.05)
    assert "nothing is equalized or corrected" in " ".join(result.notes)
    mine = nbcompile.load(run.output, make_net())
    again = nbcompile.export(mine, tmp_path / "again.tflite")  # named otherwise inside, and the same numbers
    assert accuracy_of(again.path) == run.simulated_accuracy
    best = origin_of(nbcompile.load(run.run_dir / "best.ckpt"))
    assert best is not None
    assert best.int8


@pytest.mark.slow
def test_other_files_are_as_ever(run: TrainResult, tmp_path: Path) -> None:
    loaded = nbcompile.load(run.output)
    assert nbcompile.export(loaded, tmp_path / "tiny.onnx").error < 1e-5
    images = load_digits().train[list(range(40))]
    assert not isinstance(images, Exception)
    calibrated = nbcompile.export(loaded, tmp_path / "tiny.tflite", calibration=images[0], ranges="minmax")
    assert "training with --int8" not in " ".join(calibrated.notes)


def test_a_run_begins_no_second_time_with_old_ranges(run: TrainResult, tmp_path: Path) -> None:
    result = train(nbcompile.load(run.output), TrainConfig(**CONFIG), tmp_path / "more.pt")
    origin = origin_of(result.model)
    assert origin is not None
    assert not origin.int8


def test_ranges_of_other_weights_are_not_taken(
    run: TrainResult, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed = nbcompile.load(run.output, make_net())
    with torch.no_grad():
        changed[0].weight[0, 0, 0, 0] += 1
    with pytest.raises(UsageError, match=r"^the weights were changed since the training with --int8: train again with"):
        nbcompile.export(changed, tmp_path / "tiny.tflite")
    assert list(tmp_path.iterdir()) == []
    nbcompile.save(changed, tmp_path / "changed.pt")
    assert "save: the weights were changed since the training with --int8: the ranges" in caplog.text
    for network in (nbcompile.load(tmp_path / "changed.pt"), nbcompile.fuse(changed)):
        origin = origin_of(network)
        assert origin is not None
        assert not origin.int8


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"equalize": "always"}, "equalize='always' would undo the training with --int8: leave it out, or say"),
        ({"correct_bias": "always"}, "correct_bias='always' would undo the training with --int8: leave it out, or"),
        ({"per_channel": False}, "the training with --int8 was for weights per channel: leave --per-tensor out, or"),
        ({"ranges": "mse"}, "quantize='int8' needs a calibration set, some 100 images"),
        ({"quantize": "int16x8"}, "quantize='int16x8' needs a calibration set, some 100 images"),
    ],
)
def test_options_that_do_not_fit(run: TrainResult, tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        nbcompile.export(nbcompile.load(run.output), tmp_path / "tiny.tflite", **options)
    assert str(refused.value).startswith(sentence)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_was_changed_is_refused(run: TrainResult, tmp_path: Path) -> None:
    changed = nbcompile.load(run.output, make_net())
    changed[2] = nn.Hardswish()
    with pytest.raises(UsageError, match="that training with --int8 recorded are of another network: "):
        nbcompile.export(changed, tmp_path / "tiny.tflite")
    assert list(tmp_path.iterdir()) == []


def test_a_giant_that_stays_one_is_refused_before_it_is_trained(
    net_for: Callable[[], nn.Module], tmp_path: Path
) -> None:
    giant = nbcompile.expand(net_for(), torch.randn(2, 1, 8, 8), where="all", ratio=2)
    with pytest.raises(UsageError, match="the slopes of this giant stand at 0, and method 'vanilla' leaves them there"):
        train(giant, TrainConfig(**CONFIG, int8=1), tmp_path / "trained.pt")
    assert list(tmp_path.iterdir()) == []


class Erf(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.erfcx(x)


def test_what_tflite_cannot_express_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Erf())
    with pytest.raises(nbcompile.NBCompileError, match="erfcx"):
        train(net, TrainConfig(**CONFIG, int8=1), tmp_path / "trained.pt")
    assert list(tmp_path.iterdir()) == []
