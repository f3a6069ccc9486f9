"""The README is run, and stays short."""

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import nbcompile
from nbcompile.cli.app import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
HEADING, STORY = re.findall(r"## The story in (\d+) lines\n+```python\n(.*?)```", README, flags=re.DOTALL)[0]


def test_the_python_story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    space: dict[str, object] = {}
    exec(compile(STORY, "README.md", "exec"), space)
    model, tiny, giant = space["model"], space["tiny"], space["giant"]
    assert isinstance(model, torch.nn.Module)
    assert isinstance(tiny, torch.nn.Module)
    assert isinstance(giant, torch.nn.Module)
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(model.eval()(x), tiny(x), rtol=0, atol=0)
    torch.testing.assert_close(giant.eval()(x), tiny(x), rtol=1e-5, atol=1e-5)
    assert nbcompile.verify(nbcompile.load("trained.pt"), "tiny.onnx").passed


def test_its_lines_are_counted_rightly() -> None:
    assert int(HEADING) == len([line for line in STORY.splitlines() if line.strip()])


def test_the_site_begins_with_the_same_story() -> None:
    assert f"## The story in {HEADING} lines\n\n```python\n{STORY}```" in (ROOT / "docs" / "index.md").read_text()


def test_it_is_read_in_minutes() -> None:
    lines = README.splitlines()
    assert len(lines) <= 140
    assert len(README.encode()) <= 9_000
    assert [line for line in lines if len(line) > 120] == []


def test_the_commands_are_the_ones_that_exist() -> None:
    result = CliRunner().invoke(app, ["--help"])
    for command in ("expand", "train", "fuse", "verify", "inspect"):
        assert re.search(rf"^\W*{command} ", result.output, re.MULTILINE)
        assert f"nbcompile {command}" in README
