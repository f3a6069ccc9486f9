"""Every package that a module imports is declared, by the extra that whoever runs that module has installed."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.house import import_statements

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = ("nbcompile", "passes", "exporters")
SOURCES = sorted(str(p.relative_to(ROOT)) for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))
TESTS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests").rglob("*.py"))
INSTALLS = {
    "": [""],
    "exporters/to_onnx": ["onnx"],
    "exporters/to_tflite": ["tflite"],
    "nbcompile/deploy/calibration_images.py": ["tflite"],
    "nbcompile/detection/decode.py": ["train"],
    "nbcompile/image_files.py": ["tflite", "train"],
    "nbcompile/report": ["train"],
    "nbcompile/training": ["train"],
    "nbcompile/training/deployed_accuracy.py": ["train onnx"],
    "nbcompile/training/tasks/detection.py": ["train detect"],
    "tests": ["dev"],
}
"""By file or folder, the most specific of which counts: the installs, each with these extras, in which it must run."""

BROUGHT = {"triton", "huggingface_hub"}
"""Used where others have brought it: torch, where it can use the first; timm, whose downloads go through the second."""

DISTRIBUTIONS = packages_distributions()
OURS_AND_PYTHONS = {*sys.stdlib_module_names, "nbcompile", "tests"}


@cache
def requirements(extras: str) -> set[str]:
    """Names of the packages of an install with ``extras``, as pyproject has them."""
    found = [*PROJECT["dependencies"]]
    for extra in extras.split():
        found += PROJECT["optional-dependencies"][extra]
    own = {name for r in found if r.startswith("nbcompile[") for name in re.findall(r"\w+", r)[1:]}
    names = {re.match(r"[\w.-]+", r)[0] for r in found}  # type: ignore[index]
    return names - {"nbcompile"} | (requirements(" ".join(own)) if own else set())


def imported(file: str) -> Iterator[str]:
    """The packages of others that ``file`` imports, wherever it does."""
    for node in import_statements(ROOT / file):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for package in {name.partition(".")[0] for name in names}:
            if package not in OURS_AND_PYTHONS:
                yield package


def providers(package: str) -> set[str]:
    """What is to be installed for ``import package``."""
    return {name.lower().replace("_", "-") for name in DISTRIBUTIONS.get(package, [package])}


def undeclared(file: str) -> list[str]:
    place = max((place for place in INSTALLS if file.startswith(place)), key=len)
    return [
        f"{package} in nbcompile[{extras}]"
        for extras in INSTALLS[place]
        for package in imported(file)
        if package not in BROUGHT and not providers(package) & requirements(extras)
    ]


def test_what_is_imported_is_declared() -> None:
    assert {file: found for file in (*SOURCES, *TESTS) if (found := undeclared(file))} == {}


def test_what_is_declared_is_imported() -> None:
    used = {name for file in SOURCES for package in imported(file) for name in providers(package)}
    assert requirements("all") - used == set()


def test_the_check_sees_a_package_of_another_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert undeclared("exporters/to_onnx/file.py") == []
    monkeypatch.setitem(INSTALLS, "exporters/to_onnx", ["tflite"])
    assert "onnx in nbcompile[tflite]" in undeclared("exporters/to_onnx/file.py")


def test_every_place_exists() -> None:
    assert [place for place in INSTALLS if not (ROOT / place).exists()] == []
