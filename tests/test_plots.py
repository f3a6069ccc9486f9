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


def test_what_survives(plots: Any, tmp_path: Path) -> None:
    points = [{"mean": 1.234, "standard_error": 0.5}, {"mean": -1.0, "standard_error": 0.25}]
    found = {"epochs": [1, 2], "rising": [2], "slope": [0.0, 1.0], "validation": points, "training": points[::-1]}
    (tmp_path / "survival.json").write_text(json.dumps({"results": found}))
    plots.draw(tmp_path, {"survival": lambda: plots.survival(tmp_path / "survival.json")})
    told = json.loads(said((tmp_path / "survival.svg").read_text(), "description"))
    assert (told["validation"], told["training"]) == ([[1.23, 0.5], [-1.0, 0.25]], [[-1.0, 0.25], [1.23, 0.5]])
    assert (told["epochs"], told["slope"], told["rising"]) == ([1, 2], [0.0, 1.0], [2])
