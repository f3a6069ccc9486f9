"""``macs``: a run ends where its budget ends."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nbcompile
from nbcompile import UsageError
from nbcompile.training import Event, Started, TrainConfig, train
from nbcompile.training.command import run_train
from nbcompile.training.compute import MOST_EPOCHS, Prices, training_cost, within_budget
from nbcompile.training.methods import netbooster
from tests.training.stopping import StopError, stop_after
from tests.training.test_compute import IMAGES, PHASES, X, network, teacher
from tests.training.test_resume import differing

BOOSTED = {"method": "netbooster", "where": ["3"], "ratio": 2}
RUNS: dict[str, dict[str, Any]] = {
    "vanilla": {"method": "vanilla"},
    "kd": {"method": "kd", "teacher": "t.pt"},
    "netbooster": BOOSTED,
    "phases of given length": {name: value for name, value in PHASES.items() if name != "epochs"},
    "contracted": BOOSTED | {"contract_at": "decay"},
    "its own teacher": BOOSTED | {"method": "netbooster+kd", "teacher": "self"},
    "netaug": {"method": "netaug"},
    "both": BOOSTED | {"method": "netbooster+netaug", "contract_at": "decay"},
    "rocket": BOOSTED | {"method": "rocket"},
    "grad-reparam": {"method": "grad-reparam"},
}
SLOW = ("netaug", "both", "rocket", "its own teacher")


def cost_of(options: dict[str, Any], epochs: int) -> int:
    """As it is counted for a run that is told its epochs."""
    foreign = teacher() if options.get("teacher") == "t.pt" else None
    return training_cost(network(), TrainConfig(**options, epochs=epochs), X, IMAGES, foreign).total


@pytest.mark.parametrize("run", [pytest.param(r, marks=pytest.mark.slow if r in SLOW else ()) for r in RUNS])
def test_the_most_epochs_that_are_paid_for(run: str) -> None:
    options, epochs = RUNS[run], 13
    spent = {count: cost_of(options, count) for count in (epochs, epochs + 1)}
    foreign = teacher() if options.get("teacher") == "t.pt" else None
    prices = Prices(network(), X, IMAGES, foreign)
    for budget, expected in ((spent[13], 13), (spent[14] - 1, 13), (spent[14], 14)):
        found = within_budget(TrainConfig(**options, macs=float(budget)), prices)
        assert found == TrainConfig(**options, macs=float(budget), epochs=expected)
        assert (prices.of(found).total, prices.of(found).budget) == (spent[expected], budget)


def test_the_giant_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = netbooster.expand

    def counted(*args: Any, **options: Any) -> nn.Module:
        calls.append(args)
        return real(*args, **options)

    monkeypatch.setattr(netbooster, "expand", counted)
    prices = Prices(network(), X, IMAGES)
    found = within_budget(TrainConfig(**BOOSTED, macs=1e10), prices)
    assert (found.epochs > 200, len(calls)) == (True, 1)


def test_a_budget_that_nothing_fits_is_refused() -> None:
    prices = Prices(network(), X, IMAGES)
    plain = cost_of({"method": "vanilla"}, 1)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"macs": 1e5}, rf"macs 100000 is less than one epoch costs: {plain} by 'vanilla'"),
        ({"macs": 1e30}, rf"macs 1e\+30 pays for more than {MOST_EPOCHS:,} epochs of {plain}: give less"),
        (
            {"macs": 3.0 * plain, "warmup_epochs": 5},
            r"macs .* pays for 3 epochs: warmup_epochs must be less than",
        ),
        (
            {"macs": 1.0 * plain, "restarts": (3,)},
            r"macs .* pays for 1 epoch: restarts must rise, .* epochs 1, not 3",
        ),
        (PHASES | {"macs": 3.0 * plain, "epochs": 60}, r"macs .* pays for 2 epochs: plain_epochs 2 \+ giant_epochs 3"),
        ({"macs": 1e9, "epochs": 30}, "epochs and macs both say when the run ends: give one of them"),
        ({"macs": -1.0}, "macs must be > 0, not -1"),
        ({"macs": float("nan")}, "macs must be > 0, not nan"),
    ]
    for options, sentence in cases:
        with pytest.raises(UsageError, match=f"^{sentence}"):
            within_budget(TrainConfig(**options), prices)


@pytest.mark.slow
def test_a_run_says_its_budget_and_a_resumed_one_has_the_same_epochs(
    net_for: Callable[[], nn.Module], tmp_path: Path
) -> None:
    told: list[Event] = []
    few: dict[str, Any] = {"batch_size": 256, "train_images": 600, "accelerator": "cpu", "method": "netbooster"}
    config = TrainConfig(**few, where="all", ratio=2, macs=1.5e8)
    whole = train(net_for(), config, tmp_path / "whole.pt", on_event=told.append)
    started = next(event for event in told if isinstance(event, Started))
    assert (started.epochs, started.macs) == (len(whole.history), 1.5e8)
    assert whole.cost.total <= 1.5e8 < whole.cost.total * (1 + 1 / started.epochs) * 1.5
    with pytest.raises(StopError):
        train(net_for(), config, tmp_path / "parts.pt", on_event=stop_after(1))
    train(net_for(), config, tmp_path / "parts.pt", resume=True)
    one, two = (torch.load(tmp_path / f"{name}-run" / "last.ckpt", weights_only=True) for name in ("whole", "parts"))
    assert differing(one, two) == []
    kept, result = (json.loads((whole.run_dir / name).read_text()) for name in ("config.json", "result.json"))
    assert (kept["macs"], kept["epochs"]) == (1.5e8, started.epochs)
    assert result["cost"]["budget"] == 1.5e8
    assert " training MACs of a budget of 1.5e+08 (giant " in result["cost"]["in_words"]
    with pytest.raises(UsageError, match=r"was started with macs=150000000.0, not macs=500000000.0: resume"):
        train(net_for(), TrainConfig(**few, where="all", ratio=2, macs=5e8), tmp_path / "parts.pt", resume=True)


@pytest.mark.slow
def test_typed(tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "nbcompile", "train", "nbcompile:dscnn", "--data", "digits"]
        paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
        environment = {**os.environ, **paths}
        return subprocess.run(
            [*command, "-o", "x.pt", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    ran = run("--macs", "1.9e8", "--train-images", "300", "--accelerator", "cpu")
    assert ran.returncode == 0, ran.stderr
    assert "vanilla on digits: 2 epochs of 9 steps, as many as 1.9e+08 training MACs pay for" in ran.stderr
    assert "training MACs of a budget of 1.9e+08, 1.00 × plain" in ran.stdout
    assert nbcompile.load(tmp_path / "x.pt")


def test_two_ends_are_refused_even_where_one_is_the_default(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^epochs and macs both say when the run ends: give one of them$"):
        run_train("nbcompile:dscnn", output=tmp_path / "x.pt", data="digits", epochs=60, macs=1e12)
