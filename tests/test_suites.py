"""The plan of ``ablate.py --suite``: which runs it asks for, where a network is at its limit, what is compared."""

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
ACCURACY = {30: 0.20, 60: 0.24, 120: 0.243, 240: 0.245}
"""Of vanilla, by epochs: doubling gives 4 points, then 0.3."""


@pytest.fixture
def suites(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("_suite_runs")


def sitting(suites: Any, root: Path, **options: Any) -> Any:
    args = {
        "suite": "tiny-imagenet", "data": f"imagefolder:{root}/tiny", "images": None, "accelerator": "cpu",
        "quick": False, "settings": None, "runs": root, "minutes": None, "jobs": 1, "out": root / "suite.json",
    }  # fmt: skip
    return suites.Sitting(argparse.Namespace(**(args | options)))


@pytest.fixture
def trained(suites: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Runs that take no time: vanilla as in ``ACCURACY``, others a point better; the seed adds a thousandth."""
    done: list[Any] = []

    def carried_out(runs: Any, jobs: int, end: float | None) -> bool:
        for run in runs:
            if run.found() is None:
                done.append(run)
                told = run.told
                final = ACCURACY[told.epochs] + told.seed / 1000 + (told.method != "vanilla") / 100
                run.folder.mkdir(parents=True)
                known = {"config": told.to_json(), "final": final, "expanded": None, "seconds": 1.0}
                (run.folder / "found.json").write_text(json.dumps(known))
        return True

    monkeypatch.setattr(suites, "carried_out", carried_out)
    monkeypatch.setattr(suites, "compute", lambda network, told, teacher: 2.0 * told.epochs)
    return done


def test_the_limit_is_where_doubling_gains_little(suites: Any, trained: list[Any], tmp_path: Path) -> None:
    one = sitting(suites, tmp_path)
    assert one.limit("residual-91k") == 60
    assert [run.told.epochs for run in trained] == [30] * 3 + [60] * 3 + [30] + [120] * 3
    assert [run.network for run in trained].index("residual-731k") == 6, "the teacher, beside the plain runs"
    assert {run.told.seed for run in trained} == {0, 1, 2, suites.TEACHER_SEED}
    assert one.limit("residual-91k") == 60
    assert len(trained) == 10, "what is done is done"


def test_a_sitting_that_ends_says_so(suites: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(suites, "carried_out", lambda *_: False)
    assert sitting(suites, tmp_path).limit("residual-91k") is None


def test_rows_beside_vanilla_of_the_same_epochs_and_of_the_budget(
    suites: Any, trained: list[Any], tmp_path: Path
) -> None:
    one = sitting(suites, tmp_path, settings=["vanilla", "NetAug"])
    assert one.limit("residual-91k") == 60
    one.done([run for cell in one.cells("residual-91k", 60) for run in cell.runs])
    found = one.results()
    network = found["networks"]["residual-91k"]
    assert network["epochs"] == 60
    assert {n: round(x["mean"], 2) for n, x in network["vanilla_by_epochs"].items()} == {
        "30": 20.1, "60": 24.1, "120": 24.4,
    }  # fmt: skip
    plain, ours = network["rows"]
    assert (plain["name"], ours["name"]) == ("vanilla", "NetAug")
    assert ours["over_same"]["mean"] == pytest.approx(1.0)
    assert (ours["epochs_compute"], ours["over_compute"]["mean"], ours["enough"]) == (120, pytest.approx(0.7), True)
    assert found["missing"] == ["mobilenet-47k: vanilla", "mobilenet-47k: NetAug"]


def test_a_row_that_costs_more_than_any_plain_run_stands_beside_the_longest(
    suites: Any, trained: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(suites, "compute", lambda network, told, teacher: 5.0 * told.epochs)
    one = sitting(suites, tmp_path, settings=["vanilla", "NetAug"])
    assert one.limit("residual-91k") == 60
    one.rows_done("residual-91k", 60)
    row = one.results()["networks"]["residual-91k"]["rows"][1]
    assert (row["compute"], row["epochs_compute"], row["enough"]) == (300, 120, False)
    assert row["over_compute"]["mean"] == pytest.approx(0.7)


def test_another_machine_goes_on_from_the_result_file(suites: Any, trained: list[Any], tmp_path: Path) -> None:
    one = sitting(suites, tmp_path / "here", settings=["vanilla", "tf-KD"])
    assert one.limit("residual-91k") == 60
    found = one.results()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "suite.json").write_text(json.dumps({"results": found}))
    trained.clear()
    other = sitting(suites, tmp_path / "there", settings=["vanilla", "KD, stored labels", "tf-KD", "NetAug + KD"])
    assert other.results()["teacher"] == found["teacher"], "whose weights are not there"
    assert other.limit("residual-91k") == 60
    assert not trained
    assert other.rows_done("residual-91k", 60)
    made = [(run.network, run.told.method) for run in trained]
    rows = [("residual-91k", method) for method in ("kd", "tf-kd", "netaug+kd") for _ in range(3)]
    assert made == [("residual-731k", "vanilla"), *rows]


def test_the_teacher_waits_for_no_row_that_does_without(suites: Any, trained: list[Any], tmp_path: Path) -> None:
    one = sitting(suites, tmp_path, settings=["vanilla", "tf-KD", "NetAug + KD"])
    assert one.rows_done("residual-91k", 30)
    methods = [run.told.method for run in trained]
    assert methods == ["vanilla"] * 3 + ["tf-kd"] * 3 + ["vanilla"] + ["netaug+kd"] * 3
    assert trained[6].network == "residual-731k"


def test_every_row_is_a_run_that_can_be(suites: Any, tmp_path: Path) -> None:
    one = sitting(suites, tmp_path)
    for epochs in (30, 60):
        assert len({row.name for row in one.suite.rows}) == 12
        place = suites.Place(epochs, Path("teacher"), Path("labels"))
        for row in one.suite.rows:
            run = one.run("mobilenet-47k", epochs, 0, row.options(place))
            assert run.told.epochs == epochs
            assert run.told.data == "imagefolder:tiny"
            assert run.config.data == f"imagefolder:{tmp_path.resolve()}/tiny"


def test_a_run_is_the_same_on_another_machine(suites: Any, tmp_path: Path) -> None:
    here, there = (sitting(suites, tmp_path / name) for name in ("here", "there"))
    taught = {"method": "kd", "teacher": "big/trained.pt", "stored_labels": "labels"}
    ours, theirs = (one.run("residual-91k", 30, 1, taught) for one in (here, there))
    assert (ours.fields, ours.folder.name) == (theirs.fields, theirs.folder.name)
    assert ours.config.stored_labels == str(tmp_path / "here" / "labels")
    assert ours.config.teacher == "big/trained.pt", "it is not there yet"
    (tmp_path / "here" / "big").mkdir(parents=True)
    (tmp_path / "here" / "big" / "trained.pt").touch()
    assert ours.config.teacher == str(tmp_path / "here" / "big" / "trained.pt")
