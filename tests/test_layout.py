"""The rooms of the house: who may import whom, and one name for one thing."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbcompile.passes import PASSES

ROOT = Path(__file__).parents[1]
ROOMS = {"passes": ROOT / "passes", "exporters": ROOT / "exporters", "core": ROOT / "nbcompile" / "core"}
SOURCES = sorted(p for folder in ("nbcompile", "passes", "exporters") for p in (ROOT / folder).rglob("*.py"))


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that ``file`` imports, wherever it stands in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            whole = base == "nbcompile"  # `from nbcompile import zoo` names a module
            yield from ((node.lineno, f"{base}.{alias.name}" if whole else base) for alias in node.names)


def breaches(file: Path, allowed: tuple[str, ...]) -> list[str]:
    return [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for line, name in imported(file)
        if re.match(r"nbcompile(\.|$)", name) and not name.startswith((*allowed, "nbcompile.__version__"))
    ]


@pytest.mark.parametrize(
    ("room", "allowed"),
    [
        ("core", ("nbcompile.core",)),
        ("passes", ("nbcompile.core", "nbcompile.passes")),
        ("exporters", ("nbcompile.core", "nbcompile.exporters")),
    ],
)
def test_imports_only_go_down(room: str, allowed: tuple[str, ...]) -> None:
    """Core knows nobody; passes and exporters know core, and not each other; nobody below knows the front."""
    files = sorted(ROOMS[room].rglob("*.py"))
    assert len(files) > 3
    assert [line for file in files for line in breaches(file, allowed)] == []


def test_the_check_sees_a_breach() -> None:
    file = ROOT / "nbcompile" / "expansion.py"
    assert breaches(file, ("nbcompile.core",))
    assert "nbcompile.passes" in {name for _, name in imported(file)}


@pytest.mark.parametrize(
    "file", [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_are_absolute_and_name_the_installed_package(file: Path) -> None:
    for line, name in imported(file):
        assert not name.startswith("."), f"line {line}: relative import"
        assert name.split(".")[0] not in ("passes", "exporters"), f"line {line}: a second copy of {name}"


def test_a_pass_has_one_name_everywhere() -> None:
    """merge-affine: class MergeAffine in passes/merge_affine.py, tested by tests/passes/test_merge_affine.py."""
    for name, cls in PASSES.items():
        module = name.replace("-", "_")
        assert cls.__name__ == "".join(part.capitalize() for part in name.split("-"))
        assert cls.__module__ == f"nbcompile.passes.{module}"
        assert (ROOT / "passes" / f"{module}.py").is_file()
        assert (ROOT / "tests" / "passes" / f"test_{module}.py").is_file()


@pytest.mark.parametrize("folder", ["passes", "exporters"])
def test_a_second_copy_is_refused(folder: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"ImportError: import nbcompile.{folder}: the bare name '{folder}' would load a second copy" in done.stderr


def test_every_folder_with_modules_is_packaged() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    homes = {package: Path(folder) for package, folder in settings["package-dir"].items()}

    def home(package: str) -> Path:
        parent, _, last = package.rpartition(".")
        return homes.get(package) or home(parent) / last

    listed = {home(package) for package in settings["packages"]}
    assert len(listed) == len(settings["packages"])
    assert listed == {file.parent.relative_to(ROOT) for file in SOURCES}
    assert all((ROOT / folder / "__init__.py").is_file() for folder in listed)
