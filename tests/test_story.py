"""The README is run: its Python, its command lines, its list of networks."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import nbcompile
from nbcompile.cli.app import app
from nbcompile.models import build

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    story = next(code for code in blocks("python") if "nbcompile.expand" in code)
    space: dict[str, object] = {}
    exec(compile(story, "README.md", "exec"), space)
    model, tiny, giant = space["model"], space["tiny"], space["giant"]
    assert isinstance(model, torch.nn.Module)
    assert isinstance(tiny, torch.nn.Module)
    assert isinstance(giant, torch.nn.Module)
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(model.eval()(x), tiny(x), rtol=0, atol=0)
    torch.testing.assert_close(giant.eval()(x), tiny(x), rtol=1e-5, atol=1e-5)
    assert nbcompile.verify(nbcompile.load("trained.pt"), "tiny.onnx").passed


def test_every_command_line_parses() -> None:
    """Options in the README exist: every shown command is parsed up to where it would read files."""
    lines = [line for code in blocks("console") for line in code.splitlines() if line.startswith("$ nbcompile ")]
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line.removeprefix("$ nbcompile "), comments=True)
        parsed = CliRunner().invoke(app, [*words, "--no-such-option"])
        assert parsed.exit_code == 2
        assert "--no-such-option" in parsed.output, f"{line}: {parsed.output}"


def test_every_named_network_can_be_built() -> None:
    sentence = README[README.index("`nbcompile:NAME` (") : README.index("or `package.module:factory`")]
    names = re.findall(r"`([a-z0-9_]+)`", sentence)
    assert len(names) == 6
    for name in names:
        assert build(f"nbcompile:{name}").inputs


def test_every_number_has_its_file() -> None:
    results = re.findall(r"\((benchmarks/[\w./]+)\)", README)
    assert results
    for name in results:
        assert (Path(__file__).parent.parent / name).is_file(), name


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.findall(r"@[A-Z]+@", README)


def test_the_commands_are_the_ones_that_exist() -> None:
    result = CliRunner().invoke(app, ["--help"])
    for command in ("expand", "train", "fuse", "verify", "inspect"):
        assert f"  {command} " in result.output
        assert f"nbcompile {command}" in README
