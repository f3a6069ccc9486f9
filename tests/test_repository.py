"""What stands around the code does what it says: workflows, the action, the issue forms, the hooks, the citation."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml

import nbcompile
from nbcompile.cli.app import app
from nbcompile.testing import scramble_

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ACTION = ".github/actions/verify-cost"
FILES = sorted(str(p.relative_to(ROOT)) for p in (ROOT / ".github").rglob("*.yml"))


def read(file: str) -> Any:
    return yaml.safe_load((ROOT / file).read_text())


def steps(content: Any) -> Iterator[dict[str, Any]]:
    """Of every job of a workflow, or of an action."""
    for job in content.get("jobs", {}).values():
        yield from job["steps"]
    yield from content.get("runs", {}).get("steps", ())


def documented() -> list[Any]:
    """The workflows of README and docs that use the action."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    found = [yaml.safe_load(code) for p in pages for code in re.findall(r"```yaml\n(.*?)```", p.read_text(), re.DOTALL)]
    return [content for content in found if any("verify-cost" in step.get("uses", "") for step in steps(content))]


def test_all_of_them_are_looked_at() -> None:
    assert len(FILES) == 6
    assert len(documented()) == 1


@pytest.mark.parametrize("file", FILES)
def test_commands_exist(file: str) -> None:
    text = (ROOT / file).read_text()
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"\bmake ([\w-]+)", text)) <= {*targets}
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, words in re.findall(r"(?:run: |`)nbcompile ([a-z-]+)([^`\n]*)", text):
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {*re.findall(r"(?<=[ +])--?[a-z][a-z-]*", words)} <= known


def test_the_workflow_has_the_oldest_python() -> None:
    pythons = read(".github/workflows/test.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert f">={pythons[0]}" == PROJECT["requires-python"]


def test_the_slow_tests_run_every_week() -> None:
    slow = read(".github/workflows/slow.yml")
    assert slow[True] == {"schedule": [{"cron": "0 3 * * 1"}], "workflow_dispatch": None}  # YAML takes "on" for true
    *_, last = slow["jobs"]["test-slow"]["steps"]
    assert last == {"run": "make test-slow"}
    assert "\ntest-slow: setup\n" in (ROOT / "Makefile").read_text()


def test_an_actions_words_reach_its_commands_as_words() -> None:
    """What a user writes is never part of a script: it could be one."""
    action = read(f"{ACTION}/action.yml")
    used = set()
    for step in steps(action):
        assert "${{" not in step["run"]
        for name, value in step.get("env", {}).items():
            assert f'"${name}"' in step["run"]
            used |= {*re.findall(r"^\$\{\{ inputs\.(\w+) }}$", value)}
    assert used == {*action["inputs"]}


def test_who_uses_the_action_gives_what_it_asks_for() -> None:
    inputs = read(f"{ACTION}/action.yml")["inputs"]
    users = [*documented(), read(".github/workflows/test.yml")]
    given = [step["with"] for content in users for step in steps(content) if ACTION in step.get("uses", "")]
    assert len(given) == 2
    for words in given:
        assert {name for name, row in inputs.items() if row.get("required")} <= {*words} <= {*inputs}


def test_the_action_installs_the_repository_that_it_is_in() -> None:
    install = next(steps(read(f"{ACTION}/action.yml")))["run"]
    place, extra = re.fullmatch(r'python -m pip install "\$GITHUB_ACTION_PATH/(.*)\[(\w+)]"', install).groups()  # type: ignore[union-attr]
    assert (ROOT / ACTION / place).resolve() == ROOT
    assert extra in PROJECT["optional-dependencies"]


def acted(
    folder: Path, *, names: tuple[str, ...] = ("Fuse", "Verify"), **words: str
) -> list[subprocess.CompletedProcess[str]]:
    """Steps of the action, as GitHub runs them; those after one that fails are left out."""
    action, done = read(f"{ACTION}/action.yml"), []
    inputs = {name: row.get("default", "") for name, row in action["inputs"].items()} | words
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for step in [step for step in steps(action) if step["name"] in names]:
        given = {k: re.sub(r"\$\{\{ inputs\.(\w+) }}", lambda m: inputs[m[1]], v) for k, v in step["env"].items()}
        script = folder / "step.sh"
        script.write_text(step["run"])
        command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)]
        environment = {**os.environ, "PATH": path, **given}
        done.append(subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False))
        if done[-1].returncode:
            break
    return done


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Somebody's repository: a trained giant, and the originals that it may be compared with."""
    giant = scramble_(nbcompile.expand(nbcompile.zoo.dscnn(), torch.randn(1, 1, 8, 8)))
    nbcompile.PLT(giant, steps=1).step()
    nbcompile.save(giant, tmp_path / "trained.pt")
    torch.save(nbcompile.zoo.dscnn().state_dict(), tmp_path / "weights of mine.pt")
    (tmp_path / "nets.py").write_text(
        "from nbcompile import zoo\n"
        "def tiny(): return zoo.dscnn()\n"
        "def other():\n"
        "    net = zoo.dscnn()\n"
        "    net.classifier = type(net.classifier)(16, 9)\n"
        "    return net\n"
    )
    return tmp_path


@pytest.mark.slow
def test_the_action_passes_what_costs_the_same_and_names_the_layer_that_does_not(project: Path) -> None:
    words = {"trained": "weights of mine.pt", "model": "nets:tiny", "input": "1x1x8x8", "output": "my net.onnx"}
    done = acted(project, against="nets:tiny", **words)
    assert [step.returncode for step in done] == [0, 0], done[-1].stderr
    assert (project / "my net.onnx").is_file()
    (done,) = acted(project, names=("Verify",), against="nets:other", **words)
    assert done.returncode == 1
    assert "classifier" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("against", ["nbcompile:dscnn", "trained.pt"])
def test_the_action_passes_a_giant(project: Path, against: str) -> None:
    done = acted(project, trained="trained.pt", against=against)
    assert [step.returncode for step in done] == [0, 0], done[-1].stderr


@pytest.mark.slow
def test_the_action_stops_at_a_file_that_is_missing(project: Path) -> None:
    (done,) = acted(project, trained="$(touch canary).pt", against="nets:tiny")
    assert done.returncode == 2
    assert done.stderr == "nbcompile: error: $(touch canary).pt cannot be read: No such file or directory\n"
    assert not (project / "canary").exists()


@pytest.mark.parametrize("file", [file for file in FILES if "ISSUE_TEMPLATE" in file and "config" not in file])
def test_issue_forms_ask_for_the_report(file: str) -> None:
    form = read(file)
    assert {"name", "description", "body"} <= {*form}
    assert len({field["id"] for field in form["body"]}) == len(form["body"])
    assert "`nbcompile report-bug" in " ".join(field["attributes"].get("description", "") for field in form["body"])


def test_the_hooks_have_the_lowest_ruff_that_is_allowed() -> None:
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    (lowest,) = (r for r in PROJECT["optional-dependencies"]["dev"] if r.startswith("ruff"))
    assert lowest == f"ruff>={repository['rev'].removeprefix('v')}"
    assert [hook["id"] for hook in repository["hooks"]] == ["ruff-check", "ruff-format"]


def test_the_citation_is_of_this_version() -> None:
    citation = read("CITATION.cff")
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["references"][0]["doi"].endswith("arXiv.2306.13586")


def test_the_changelog_has_this_version_behind_what_is_unreleased() -> None:
    heads = re.findall(r"^## \[(.*?)]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[:2] == ["Unreleased", PROJECT["version"]]
