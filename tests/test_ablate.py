"""What ``benchmarks/ablate.py`` compares with what, and which of its runs it does not repeat."""

import argparse
import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from nbcompile import UsageError
from nbcompile.training import TrainConfig
from tests.slow import one_in

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("_runs")


@pytest.mark.parametrize(
    ("options", "times"),
    [
        ({"giant_epochs": 0, "plt_epochs": 0, "preserve": True, "collapse": True}, 1.0),  # vanilla's own MACs
        ({"giant_epochs": 20}, 2.0),  # 1.999
        ({"giant_epochs": 20, "block": "bottleneck"}, 3.75),  # 3.617
        ({"giant_epochs": 20, "ratio": 2, "restarts": (20,)}, 1.25),  # 1.241
        ({"giant_epochs": 20, "plt_epochs": 4, "contract_at": "decay"}, 1.75),  # 1 + 24 / 40 * 0.999
    ],
)
@pytest.mark.parametrize("epochs", one_in(2, [40, 43]))
def test_vanilla_has_the_same_epochs_or_at_least_the_same_compute(
    runs: Any, options: dict[str, Any], times: float, epochs: int
) -> None:
    told = {"method": "netbooster", "epochs": epochs, "seed": 3, "lr": 0.3, **options}
    same, more = runs.controls("2k", told)
    assert (same["method"], same["epochs"], same["seed"], same["lr"]) == ("vanilla", epochs, 3, 0.3)
    assert same["restarts"] == tuple(options.get("restarts", ()))
    cost = runs.compute("2k", TrainConfig(**told))
    assert cost <= more["epochs"] < cost + epochs / 4 + 1
    if epochs == 40:
        assert more["epochs"] == math.ceil(times * epochs)
        assert more["restarts"] == [round(times * epoch) for epoch in options.get("restarts", ())]
    assert {name for name in same if same[name] != more[name]} <= {"epochs", "restarts"}


@pytest.mark.parametrize("no_compute", [False, True])
def test_seeds_are_paired(runs: Any, tmp_path: Path, no_compute: bool) -> None:
    ablate, studies = importlib.import_module("ablate"), importlib.import_module("_studies")
    args = argparse.Namespace(
        data="digits", images=600, epochs=10, seeds=3, compile=False, no_compute=no_compute, settings=["paper"],
        teacher="8k", network="2k", runs=tmp_path,
    )  # fmt: skip
    ((setting, triples),) = ablate.planned(args, studies.STUDIES["forms"])
    assert setting.name == "paper"
    for seed, (mine, same, more) in enumerate(triples):
        assert {run.config.seed for run in (mine, same, more) if run} == {seed}
        assert (mine.config.method, mine.config.epochs, mine.config.restarts) == ("netbooster", 10, (5,))
        assert (same.config.method, same.config.epochs, same.config.restarts) == ("vanilla", 10, (5,))
        if no_compute:
            assert more is None
        else:
            assert (more.config.method, more.config.epochs, more.config.restarts) == ("vanilla", 20, (10,))
    assert len(triples) == 3
    assert len({run.folder for triple in triples for run in triple if run}) == (6 if no_compute else 9)


def test_a_run_is_known_by_what_it_was_told(runs: Any, tmp_path: Path) -> None:
    run = runs.Run.of("2k", {"method": "vanilla", "epochs": 7}, tmp_path)
    assert run.config == TrainConfig(method="vanilla", epochs=7)
    assert run == runs.Run.of("2k", {"method": "vanilla", "epochs": 7, "momentum": 0.9}, tmp_path)
    assert run.folder != runs.Run.of("2k", {"method": "vanilla", "epochs": 7, "seed": 1}, tmp_path).folder
    giant = runs.Run.of("2k", {"method": "netbooster", "epochs": 7, "ema": 0.0}, tmp_path)
    assert giant.fields == '{"epochs": 7}', "the folders of runs from before the defaults changed"
    assert giant.config == TrainConfig(method="netbooster", epochs=7, ema=0.0)
    assert run.found() is None
    run.folder.mkdir()
    known = {"config": run.config.to_json(), "final": 0.5}
    known["config"].pop("ema")  # an older version did not know it
    (run.folder / "found.json").write_text(json.dumps(known))
    assert run.found() == known
    known["config"]["lr"] = 0.2  # an older version's default
    (run.folder / "found.json").write_text(json.dumps(known))
    with pytest.raises(SystemExit, match=r"was run with other lr: choose another --runs$"):
        run.found()


def test_runs_from_before_the_temperature_changed_keep_their_folders(runs: Any, tmp_path: Path) -> None:
    taught = {"method": "kd", "teacher": "t.pt", "epochs": 7}
    old = runs.Run.of("2k", taught | {"temperature": 4.0, "ema": 0.0}, tmp_path)
    assert json.loads(old.fields) == taught
    assert old.config.temperature == 4.0
    new = runs.Run.of("2k", taught | {"ema": 0.0}, tmp_path)
    assert json.loads(new.fields) == taught | {"temperature": 1.0}
    assert new.config.temperature == 1.0
    plain = runs.Run.of("2k", {"method": "vanilla", "epochs": 7, "ema": 0.0}, tmp_path)
    assert json.loads(plain.fields) == {"method": "vanilla", "epochs": 7}
    for run, temperature in ((plain, 4.0), (old, 4.0)):  # what older versions wrote
        run.folder.mkdir()
        (run.folder / "found.json").write_text(json.dumps({"config": run.config.to_json() | {"temperature": 4.0}}))
        assert run.found()["config"]["temperature"] == temperature


@pytest.mark.slow
def test_a_run_that_fails_stops_no_other(runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = {"method": "vanilla", "data": "digits", "epochs": 1, "accelerator": "cpu"}
    refused = [runs.Run.of("2k", told | {"seed": seed}, tmp_path) for seed in range(2)]  # of another number of channels
    with pytest.raises(UsageError, match="channels"):
        runs.carried_out(refused, jobs=1)
    said = capsys.readouterr().err
    assert all(run.folder.name in said for run in refused)
    assert not runs.carried_out(refused, jobs=1, end=0.0)
