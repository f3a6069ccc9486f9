"""The rooms of the house: who may import whom, and one name for one thing."""

import re
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from os.path import commonpath
from pathlib import Path
from statistics import median

import pytest

import nbcompile
from nbcompile.passes import PASSES
from tests.house import MODULES, ROOT, SOURCES, floors, imported, imports, public_names, rooms

ROOMS = {"passes": ROOT / "passes", "exporters": ROOT / "exporters", "core": ROOT / "nbcompile" / "core"}
PACKAGES = [name for name, file in MODULES.items() if file.name == "__init__.py"]
STANDS_ALONE = ROOT / "exporters" / "to_tflite" / "targets" / "raspberrypi_benchmark.py"
"""A script that is copied to the device: it imports nothing of ours, and its names are its own."""


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


def test_imports_are_absolute_and_name_the_installed_package() -> None:
    """The bare names of two folders would load a second copy."""
    files = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))]
    found = [(file, line, name) for file in files for line, name in imported(file)]
    assert len(found) > 3000
    assert [one for one in found if one[2].startswith(".") or one[2].split(".")[0] in ("passes", "exporters")] == []


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


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_stand_on_each_other_without_a_circle(package: str) -> None:
    """In each folder: at most seven floors, and nothing that imports what imports it."""
    inside = rooms(package, imports())
    inside = {name: others for name, others in inside.items() if not name.endswith("__main__")}
    assert floors(inside or {package: set()}) <= 7, inside


def test_a_circle_and_a_floor_are_seen() -> None:
    graph = {"a.b.x": {"a.c"}, "a.c": {"a.d.y"}, "a.d.y": set(), "a.d.z": {"a.b.x"}}
    assert rooms("a", graph) == {"a.b": {"a.c"}, "a.c": {"a.d"}, "a.d": {"a.b"}}
    with pytest.raises(ValueError, match=r"^a\.b > a\.c > a\.d > a\.b$"):
        floors(rooms("a", graph))
    assert floors({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == 3


def test_rooms_are_not_crowded() -> None:
    """No folder above 20 files, no file above 300 lines, half of them at most 130."""
    crowds = Counter(file.parent for file in SOURCES)
    lines = {file: len(file.read_text().splitlines()) for file in SOURCES}
    assert {folder: count for folder, count in crowds.items() if count > 20} == {}
    assert {file: count for file, count in lines.items() if count > 300} == {}
    assert median(lines.values()) <= 130


def test_no_public_name_is_defined_twice() -> None:
    homes = defaultdict(list)
    for file in SOURCES:
        if file != STANDS_ALONE:
            for name in set(public_names(file)):
                homes[name].append(str(file.relative_to(ROOT)))
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def test_a_public_name_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("A = _B = 1\nC: int = 2\nlog = 3\ndef f(): g = 1\nclass D:\n    e = 1\n")
    assert list(public_names(file)) == ["A", "C", "f", "D"]


def test_no_helper_is_two_floors_above_its_users() -> None:
    """What only rooms further in use stands there, or one door away; the door's verbs have users outside."""
    users = defaultdict(set)
    for name, others in imports().items():
        for other in others:
            users[other].add(MODULES[name].parent)
    far = {}
    for name, folders in users.items():
        home, common = MODULES[name].parent, Path(commonpath(folders))
        if name not in nbcompile._HOME.values() and home in common.parents and home != common.parent:
            far[name] = str(common.relative_to(ROOT))
    assert far == {}
