"""NetBooster end to end, on the digits and the small network of the demo."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nbcompile
from nbcompile import UsageError
from nbcompile.core.blocks import sites
from nbcompile.models import build
from nbcompile.training import Epoch, Event, Stepped, TrainConfig, train

MODEL = "nbcompile:dscnn?num_classes=10&in_channels=1"
OPTIONS: dict[str, Any] = {
    "method": "netbooster",
    "epochs": 5,
    "batch_size": 128,
    "warmup_epochs": 1,
    "giant_epochs": 1,
    "plt_epochs": 2,
    "accelerator": "cpu",
}
STEPS = 1437 // 128


@pytest.fixture
def dscnn() -> nn.Module:
    torch.manual_seed(0)
    return build(MODEL).model


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) | {"seconds": 0} for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_expand_ramp_fine_tune_fuse(dscnn: nn.Module, tmp_path: Path) -> None:
    events: list[Event] = []
    result = train(dscnn, TrainConfig(**OPTIONS), tmp_path / "trained.pt", on_event=events.append)

    epochs = [event for event in events if isinstance(event, Epoch)]
    assert [epoch.phase for epoch in epochs] == ["giant", "plt", "plt", "fine-tune", "fine-tune"]
    assert [epoch.slope for epoch in epochs] == [0.0, 0.5, 1.0, 1.0, 1.0]
    slopes = [event.slope for event in events if isinstance(event, Stepped)]
    assert slopes == [min(max((step - STEPS) / (2 * STEPS), 0.0), 1.0) for step in range(1, 5 * STEPS + 1)]

    tiny = nbcompile.fuse(nbcompile.load(tmp_path / "trained.pt"))
    dscnn.load_state_dict(tiny.state_dict())
    assert result.accuracy > 0.3
    assert result.fused_accuracy == pytest.approx(result.accuracy, abs=1.5 / 360)
    assert not sites(build(MODEL).model)
    assert sites(result.model)


@pytest.mark.slow
def test_a_giant_is_trained_as_it_is(dscnn: nn.Module, tmp_path: Path) -> None:
    giant = nbcompile.expand(dscnn, torch.zeros(1, 1, 8, 8), where="first:1", ratio=2)
    config = TrainConfig(**(OPTIONS | {"epochs": 2, "plt_epochs": 1}))
    result = train(giant, config, tmp_path / "trained.pt")
    assert list(sites(result.model)) == list(sites(giant))
    assert [float(block.slope) for block in sites(giant).values()] == [0.0], "the caller's giant was changed"
    unnamed = {name: value for name, value in OPTIONS.items() if name != "method"} | {"epochs": 2, "plt_epochs": 1}
    again = train(giant, TrainConfig(**unnamed), tmp_path / "unnamed.pt")
    assert (again.method, again.history[-1].slope) == ("netbooster", 1.0)
    assert json.loads((again.run_dir / "config.json").read_text())["method"] == "netbooster"
    with pytest.raises(UsageError, match="the giant already stands at slope 1: give one at 0, or resume its own run"):
        train(result.model, config, tmp_path / "again.pt")


def killed_at(step: int, output: Path) -> int:
    """Train in a process that kills itself with SIGKILL; returns its exit status."""
    script = f"""
import os, signal
from nbcompile.training import Stepped, TrainConfig, train
from nbcompile.training.seeds import seed_everything
from nbcompile.models import build
import torch
torch.set_num_threads(1)
def listener(event):
    if isinstance(event, Stepped) and event.step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
torch.manual_seed(0)
train(build({MODEL!r}).model, TrainConfig(**{OPTIONS!r}), {str(output)!r}, on_event=listener)
"""
    return subprocess.run([sys.executable, "-c", script], env=os.environ, timeout=120, check=False).returncode


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(dscnn: nn.Module, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed.pt", tmp_path / "whole.pt"
    assert killed_at(2 * STEPS + 3, killed) == -signal.SIGKILL  # in the second epoch of the ramp
    assert len(lines(tmp_path / "killed-run")) == 2
    assert not killed.exists()

    resumed = train(dscnn, TrainConfig(**OPTIONS), killed, resume=True)
    straight = train(dscnn, TrainConfig(**OPTIONS), whole)
    assert lines(tmp_path / "killed-run") == lines(tmp_path / "whole-run")
    one, two = resumed.model.state_dict(), straight.model.state_dict()
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    assert resumed.fused_accuracy == straight.fused_accuracy


@pytest.mark.slow
def test_two_processes_under_torchrun(tmp_path: Path) -> None:
    script = tmp_path / "train_it.py"
    options = OPTIONS | {"epochs": 2, "plt_epochs": 1}
    script.write_text(
        "import os, pathlib, torch\n"
        "from nbcompile.training.command import run_train\n"
        "torch.set_num_threads(1)\n"
        f"result = run_train({MODEL!r}, output={str(tmp_path / 'trained.pt')!r}, **{options!r})\n"
        "told = f'{result.accuracy} {result.fused_accuracy} {[epoch.step for epoch in result.history]}'\n"
        f"pathlib.Path({str(tmp_path)!r}, 'rank' + os.environ['RANK']).write_text(told)\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*torchrun, str(script)], capture_output=True, text=True, timeout=300, check=True)
    first, second = ((tmp_path / f"rank{rank}").read_text() for rank in (0, 1))
    assert first == second, "the processes measured different accuracies"
    assert str([STEPS, 2 * STEPS]) in first
    progress = done.stderr.splitlines()
    assert sum(line.startswith("epoch 1/2") for line in progress) == 1, "more than one process wrote progress"
    assert len(lines(tmp_path / "trained-run")) == 2
    tiny = nbcompile.fuse(nbcompile.load(tmp_path / "trained.pt"))
    build(MODEL).model.load_state_dict(tiny.state_dict())
