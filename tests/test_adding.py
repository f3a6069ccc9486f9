"""The ten additions of docs/adding.md: each diff applies, changes at most two source files, and does what it says."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "adding.md").read_text()
ROOMS = ("nbcompile", "passes", "exporters")
REQUESTS = {
    section.partition("\n")[0]: section for section in PAGE.split("\n## ")[1:] if "```diff\n" in section
}  # fmt: skip


def block(language: str, section: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    return str(found)


def changed(diff: str) -> list[str]:
    return re.findall(r"^\+\+\+ b/(\S+)$", diff, re.MULTILINE)


def apply(diff: str, tree: Path, *, check: bool = False) -> None:
    command = ["git", "apply", "--whitespace=nowarn", *(["--check"] if check else []), "-"]
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(tree.parent)}  # the tree is no repository
    done = subprocess.run(command, cwd=tree, env=environment, input=diff, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what can be changed."""
    folder = tmp_path / "house"
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_there_are_ten() -> None:
    assert len(REQUESTS) == 10


@pytest.mark.parametrize("request_", REQUESTS)
def test_the_diff_applies_and_is_small(request_: str, tree: Path) -> None:
    diff = block("diff", REQUESTS[request_])
    files = changed(diff)
    assert 1 <= len(files) <= 2
    assert all(file.startswith(ROOMS) for file in files)
    apply(diff, tree, check=True)
    for file in files:
        assert f"`{file}`" in REQUESTS[request_].partition("```")[0], f"{file} is changed and not named"


def ran(sources: Path, folder: Path) -> dict[str, str]:
    """The programs of the page in a process that finds ``sources`` and not this tree: by request, how each failed."""
    installed = folder / "installed" / "nbcompile"
    shutil.copytree(sources / "nbcompile", installed)
    for room in ROOMS[1:]:
        shutil.copytree(sources / room, installed / room)
    programs = {name: block("python", section) for name, section in REQUESTS.items()}
    (folder / "programs.json").write_text(json.dumps(programs))
    run = [sys.executable, "-c", RUN]
    environment = os.environ | {"PYTHONPATH": str(installed.parent)}
    done = subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    failed: dict[str, str] = json.loads((folder / "failed.json").read_text())
    return failed


RUN = """
import json, traceback, nbcompile
assert nbcompile.__file__.startswith(__import__("os").getcwd())
failed = {}
for name, program in json.load(open("programs.json")).items():
    try:
        exec(compile(program, name, "exec"), {})
    except Exception:
        failed[name] = traceback.format_exc()
json.dump(failed, open("failed.json", "w"))
"""


@pytest.mark.slow
def test_each_does_what_it_says(tree: Path, tmp_path: Path) -> None:
    """All ten diffs in one copy; without them no program runs."""
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    assert set(ran(tree, tmp_path / "before")) == set(REQUESTS)
    for section in REQUESTS.values():
        apply(block("diff", section), tree)
    assert ran(tree, tmp_path / "after") == {}
