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
        "networks": None, "at": None,
    }  # fmt: skip
    return suites.Sitting(argparse.Namespace(**(args | options)))


@pytest.fixture
def table(suites: Any) -> Any:
    return importlib.import_module("_suite_table")


@pytest.fixture
def trained(suites: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Runs that take no time: vanilla as in ``ACCURACY``, others a point better; the seed adds a thousandth."""
    monkeypatch.setattr(suites, "compute", lambda network, told, teacher: 2.0 * told.epochs)
    return []


def finish(run: Any) -> None:
    told = run.told
    final = ACCURACY[told.epochs] + told.seed / 1000 + (told.method != "vanilla") / 100
    run.folder.mkdir(parents=True)
    known = {"config": told.to_json(), "final": final, "expanded": None, "seconds": 1.0}
    (run.folder / "found.json").write_text(json.dumps(known))


def carry_out(one: Any, trained: list[Any], jobs: int = 1, most: int | None = None) -> list[list[str]]:
    """All runs of a sitting, or so many; those that run beside each other end together. What ran together, in words."""
    together = []
    while most is None or len(trained) < most:
        running: set[Any] = set()
        while len(running) < jobs and (run := one.next(running)) is not None:
            running.add(run)
            trained.append(run)
        if not running:
            break
        together.append(sorted(f"{run.network} {run.told.method} {run.told.epochs}" for run in running))
        for run in running:
            finish(run)
    return together


def test_the_limit_is_where_doubling_gains_little(suites: Any, trained: list[Any], tmp_path: Path) -> None:
    one = sitting(suites, tmp_path, networks=["residual-91k"])
    assert one.limit("residual-91k") is None
    carry_out(one, trained, most=10)
    assert [run.told.epochs for run in trained] == [30] * 3 + [60] * 3 + [30] + [120] * 3
    assert [run.network for run in trained].index("residual-731k") == 6, "the teacher, beside the plain runs"
    assert {run.told.seed for run in trained} == {0, 1, 2, suites.TEACHER_SEED}
    assert one.limit("residual-91k") == 60


@pytest.mark.slow
def test_rows_run_for_half_of_the_longest_at_most(
    suites: Any, trained: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(ACCURACY, 120, 0.26)
    monkeypatch.setitem(ACCURACY, 240, 0.28)
    one = sitting(suites, tmp_path, networks=["residual-91k"], settings=["vanilla", "tf-KD"])
    carry_out(one, trained)
    assert one.limit("residual-91k") == 120
    plain = [run.told.epochs for run in trained if run.told.method == "vanilla"]
    assert plain == [30] * 3 + [60] * 3 + [120] * 3 + [240] * 3
    assert [run.told.epochs for run in trained if run.told.method == "tf-kd"] == [120] * 3


@pytest.mark.slow
def test_a_network_waits_until_the_one_before_is_known(suites: Any, trained: list[Any], tmp_path: Path) -> None:
    one = sitting(suites, tmp_path, settings=["vanilla", "KD, stored labels", "tf-KD"])
    first, second, third, *_ = carry_out(one, trained, jobs=16)
    plain = {name: [f"{name} vanilla {n}" for n in (30, 60, 120, 240) for _ in range(3)] for name in one.suite.networks}
    assert first == sorted([*plain["residual-91k"], "residual-731k vanilla 30"]), "longer ones ahead of time"
    rows = [f"residual-91k {method} 60" for method in ("kd", "tf-kd") for _ in range(3)]
    assert set(second) == {*rows, *plain["mobilenet-47k"]}
    assert set(third) <= {*plain["mobilenet-47k"], *(f"mobilenet-47k {method} 60" for method in ("kd", "tf-kd"))}


def test_rows_of_epochs_that_are_said(suites: Any, table: Any, trained: list[Any], tmp_path: Path) -> None:
    one = sitting(suites, tmp_path, settings=["vanilla", "tf-KD"], networks=["residual-91k"], at=30)
    carry_out(one, trained)
    assert [(run.told.method, run.told.epochs) for run in trained] == [
        *[("vanilla", 30)] * 3, *[("vanilla", 60)] * 3, *[("tf-kd", 30)] * 3,
    ]  # fmt: skip
    row = table.results(one)["networks"]["residual-91k"]["rows"][1]
    assert (row["compute"], row["epochs_compute"], row["enough"]) == (60, 60, True)


def test_a_run_is_the_same_on_a_gpu(suites: Any, tmp_path: Path) -> None:
    here, there = (sitting(suites, tmp_path, accelerator=name) for name in ("cpu", "cuda"))
    ours, theirs = (one.vanilla("residual-91k", 30)[0] for one in (here, there))
    assert (ours, ours.folder) == (theirs, theirs.folder)
    assert ours.told.accelerator == "cpu"
    assert (theirs.told.accelerator, theirs.config.cuda_graphs, theirs.config.device_images) == ("cuda", True, True)
    finish(theirs)
    assert ours.found() == theirs.found() is not None


def test_rows_beside_vanilla_of_the_same_epochs_and_of_the_budget(
    suites: Any, table: Any, trained: list[Any], tmp_path: Path
) -> None:
    one = sitting(suites, tmp_path, settings=["vanilla", "NetAug"], networks=["residual-91k"])
    carry_out(one, trained)
    assert one.limit("residual-91k") == 60
    found = table.results(one)
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


@pytest.mark.slow
def test_a_row_that_costs_more_than_any_plain_run_stands_beside_the_longest(
    suites: Any, table: Any, trained: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(suites, "compute", lambda network, told, teacher: 5.0 * told.epochs)
    one = sitting(suites, tmp_path, settings=["vanilla", "NetAug"], networks=["residual-91k"])
    carry_out(one, trained)
    row = table.results(one)["networks"]["residual-91k"]["rows"][1]
    assert (row["compute"], row["epochs_compute"], row["enough"]) == (300, 120, False)
    assert row["over_compute"]["mean"] == pytest.approx(0.7)


@pytest.mark.slow
def test_another_machine_goes_on_from_the_result_file(
    suites: Any, table: Any, trained: list[Any], tmp_path: Path
) -> None:
    alone = {"networks": ["residual-91k"]}
    one = sitting(suites, tmp_path / "here", settings=["vanilla", "KD, stored labels"], **alone)
    carry_out(one, trained, most=10)
    found = table.results(one)
    assert found["teacher"]["accuracy"] > 0
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "suite.json").write_text(json.dumps({"results": found}))
    trained.clear()
    rows = ["vanilla", "KD, stored labels", "tf-KD", "NetAug + KD"]
    other = sitting(suites, tmp_path / "there", settings=rows, **alone)
    assert table.results(other)["teacher"] == found["teacher"], "whose weights are not there"
    assert other.limit("residual-91k") == 60
    carry_out(other, trained)
    made = [(run.network, run.told.method) for run in trained]
    expected = [("residual-91k", method) for method in ("kd", "tf-kd", "netaug+kd") for _ in range(3)]
    assert made == [("residual-731k", "vanilla"), *expected]


@pytest.mark.slow
def test_rows_that_do_without_the_teacher_do_not_wait_for_it(suites: Any, trained: list[Any], tmp_path: Path) -> None:
    one = sitting(suites, tmp_path, settings=["KD, stored labels", "tf-KD"], networks=["residual-91k"])
    for epochs in (30, 60, 120):
        for run in one.vanilla("residual-91k", epochs):
            finish(run)
    assert carry_out(one, trained, jobs=4) == [
        ["residual-731k vanilla 30", *["residual-91k tf-kd 60"] * 3],
        ["residual-91k kd 60"] * 3,
    ]


def test_without_rows_that_need_it_there_is_no_teacher(suites: Any, trained: list[Any], tmp_path: Path) -> None:
    carry_out(sitting(suites, tmp_path, settings=["vanilla", "tf-KD"], networks=["residual-91k"]), trained)
    assert {run.network for run in trained} == {"residual-91k"}


def test_on_a_gpu_steps_are_recorded_where_they_are_alike(suites: Any, tmp_path: Path) -> None:
    one = sitting(suites, tmp_path, accelerator="cuda")
    told = {row.row.name: row.runs[0].told for row in one.cells("residual-91k", 30)}
    assert all(config.device_images for config in told.values())
    assert {name for name, config in told.items() if not config.cuda_graphs} == {"NetAug", "NetAug + KD"}
    assert not sitting(suites, tmp_path).vanilla("residual-91k", 30)[0].told.device_images


def test_every_row_is_a_run_that_can_be(suites: Any, tmp_path: Path) -> None:
    one = sitting(suites, tmp_path)
    for epochs in (30, 60):
        assert len({row.name for row in one.suite.rows}) == 13
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
