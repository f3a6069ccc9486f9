"""The wheel holds every module, also those that package-dir moves, and works without the source tree."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "nbcompile": ROOT / "nbcompile",
    "nbcompile/passes": ROOT / "passes",
    "nbcompile/exporters": ROOT / "exporters",
}


def test_every_module_is_in_the_wheel_and_imports(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    wanted = set()
    for installed, folder in FOLDERS.items():
        for path in folder.rglob("*"):
            if path.suffix in (".py", ".j2", ".typed"):
                wanted.add(f"{installed}/{path.relative_to(folder)}")
                copied = source / path.relative_to(ROOT)
                copied.parent.mkdir(parents=True, exist_ok=True)
                copied.write_bytes(path.read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        assert wanted <= set(archive.namelist())
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
        assert not [name for name in archive.namelist() if name.startswith(("passes/", "exporters/", "tests/"))]
        archive.extractall(unpacked)
    modules = sorted(name[:-3].replace("/", ".").removesuffix(".__init__") for name in wanted if name.endswith(".py"))
    code = (
        "import importlib, sys\n"
        f"for name in {[m for m in modules if not m.endswith('__main__')]!r}: importlib.import_module(name)\n"
        "import nbcompile\n"
        f"assert nbcompile.__file__.startswith({str(unpacked)!r}), nbcompile.__file__"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(unpacked)!r})\n{code}"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
