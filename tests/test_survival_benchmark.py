"""What ``benchmarks/survival.py`` compares."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.benchmark_scripts import imported_script


@pytest.fixture
def survival(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with imported_script("survival", monkeypatch) as script:
        yield script


def run(folder: Path, values: tuple[float, ...], giant: bool) -> Path:
    """A run folder with the accuracies of its epochs; a giant's slopes rise from the second epoch on."""
    folder.mkdir()
    lines = [
        {
            "epoch": i + 1,
            "val_accuracy": x,
            "train_accuracy": x / 2,
            "slope": i / 2 if giant else None,
            "phase": "plt" if giant and i else "train",
        }
        for i, x in enumerate(values)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_differences_by_hand(survival: Any, tmp_path: Path) -> None:
    """Two giants, ahead by 2, 3, 1 points and by 4, 3, 1."""
    found = survival.left(
        [
            (run(tmp_path / "a", (0.12, 0.23, 0.31), True), run(tmp_path / "b", (0.10, 0.20, 0.30), False)),
            (run(tmp_path / "c", (0.14, 0.24, 0.33), True), run(tmp_path / "d", (0.10, 0.21, 0.32), False)),
        ]
    )
    for name, share in (("validation", 1), ("training", 2)):
        assert [one["mean"] * share for one in found[name]] == pytest.approx([3, 3, 1])
        assert [one["standard_error"] * share for one in found[name]] == pytest.approx([1, 0, 0])
    assert (found["epochs"], found["slope"], found["rising"]) == ([1, 2, 3], [0.0, 0.5, 1.0], [2, 3])


def test_runs_of_other_lengths_are_refused(survival: Any, tmp_path: Path) -> None:
    giant, plain = run(tmp_path / "giant", (0.1, 0.2), True), run(tmp_path / "plain", (0.1,), False)
    with pytest.raises(SystemExit, match=r"giant has 2 epochs, .*plain has 1: the two must have as many"):
        survival.left([(giant, plain)])


def test_a_pair_differs_in_the_method_alone(survival: Any, tmp_path: Path) -> None:
    args: Any = SimpleNamespace(
        data=f"imagefolder:{tmp_path / 'tiny'}", images=None, size=32, epochs=30, network="residual-26k", runs=tmp_path
    )
    giant, plain = (run.told.to_json() for run in survival.pair(args, 1))
    differ = {name for name in giant if giant[name] != plain[name]}
    assert (giant["method"], giant["preserve"], plain["method"]) == ("netbooster", True, "vanilla")
    assert differ == {"method", "preserve"}
    assert giant["seed"] == 1
