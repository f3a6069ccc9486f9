"""The pictures of docs/accuracy.md are those of today's result files."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def plots(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("plots")


def said(svg: str, name: str) -> str:
    (found,) = re.findall(rf"<dc:{name}>(.*?)</dc:{name}>", svg, re.DOTALL)
    return found


def test_drawn_anew_they_are_the_same(plots: Any, tmp_path: Path) -> None:
    plots.draw(tmp_path)
    for name in plots.PICTURES:
        old, new = ((folder / f"{name}.svg").read_text() for folder in (plots.IMAGES, tmp_path))
        assert json.loads(said(old, "description")) == json.loads(said(new, "description")), name
        if re.search("Matplotlib v[0-9.]+", old)[0] == re.search("Matplotlib v[0-9.]+", new)[0]:  # type: ignore[index]
            assert old == new, f"{name}: python benchmarks/plots.py"


def test_they_show_what_the_page_says(plots: Any) -> None:
    page = (ROOT / "docs" / "accuracy.md").read_text()
    for picture in (plots.forms, plots.ablations, plots.transfer):
        _, told = picture()
        for mean, error in (p for series in told.values() for p in series if isinstance(p, tuple)):
            assert f"{mean:+.2f} ± {error:.2f}".replace("-", "−") in page


def test_a_row_is_read_from_its_own_study(plots: Any) -> None:
    row = plots.Row("anything", "60k", "linear", "weight space")
    assert row.point("over_same") == (0.41, 0.62)
    assert plots.Row("anything", "distillation", plots.DISTILLATION, "KD").point("over_compute") is None


def test_a_description_is_json_in_every_picture(plots: Any) -> None:
    for name in plots.PICTURES:
        assert json.loads(said((plots.IMAGES / f"{name}.svg").read_text(), "description"))
        assert f"img/{name}.svg" in (ROOT / "docs" / "accuracy.md").read_text()


def test_what_survives_of_two_runs(plots: Any, tmp_path: Path) -> None:
    """By hand: a giant that is ahead by 2, 3, 1 points while its slope rises."""
    for name, values in (("giant", (0.12, 0.23, 0.31)), ("plain", (0.10, 0.20, 0.30))):
        (tmp_path / name).mkdir()
        lines = [
            {"epoch": i + 1, "val_accuracy": x, "train_accuracy": x, "slope": slope, "phase": phase}
            for i, (x, slope, phase) in enumerate(zip(values, (0.0, 0.5, 1.0), ("giant", "plt", "plt"), strict=True))
        ]
        if name == "plain":
            lines = [line | {"slope": None, "phase": "train"} for line in lines]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, told = plots.survival(tmp_path / "giant", tmp_path / "plain")
    assert told["validation"] == told["training"] == [2.0, 3.0, 1.0]
    assert (told["slope"], told["rising"]) == ([0.0, 0.5, 1.0], [2, 3])
    plots.draw(tmp_path, {"survival": lambda: plots.survival(tmp_path / "giant", tmp_path / "plain")})
    assert json.loads(said((tmp_path / "survival.svg").read_text(), "description")) == told
    (tmp_path / "plain" / "metrics.jsonl").write_text("")
    with pytest.raises(SystemExit, match=r"giant has 3 epochs, .*plain has 0: the two must have as many"):
        plots.survival(tmp_path / "giant", tmp_path / "plain")
