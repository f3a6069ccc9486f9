"""Folders that tools build: laid out as the tools ask, and the one of CMake built."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from nbcompile.core.errors import UsageError
from nbcompile.exporters.to_tflite.file.flatbuffer import pack, read_file, unpack
from nbcompile.exporters.to_tflite.file.options import PROJECTS, project_folder
from nbcompile.exporters.to_tflite.targets.check_vector import CheckVector, check_vector
from nbcompile.exporters.to_tflite.targets.micro_sources import sources
from nbcompile.exporters.to_tflite.targets.projects import laid_out
from tests.exporters.to_tflite.small_tflite import tiny
from tests.exporters.to_tflite.targets.test_check_vector import PIXELS, images
from tests.exporters.to_tflite.targets.test_micro_sources import STUBS, needs_compiler, ports

CHECKOUT = os.environ.get("NBCOMPILE_TFLITE_MICRO", "")
"""A checkout of tflite-micro in which its library is built."""

needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake")
STEM, NAME = "my-net", "my_net"


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def built(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """What CMake and the program say, and how the last of them ended."""
    for command in (
        ["cmake", "-S", str(folder), "-B", str(folder / "build"), *options],
        ["cmake", "--build", str(folder / "build")],
        [str(folder / "build" / NAME)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            break
    return done


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return sources(tiny(), STEM, 5000)


@pytest.mark.parametrize("project", PROJECTS)
def test_what_a_project_names_is_there(project: str, texts: dict[str, str]) -> None:
    files = laid_out(project, f"{STEM}_x", STEM, NAME, texts)
    assert len(files) == len({name.lower() for name in files})
    for name, text in files.items():
        named = re.findall(rf'["\s(]([\w/.-]*{STEM}[\w.]*\.(?:cc|cpp|ino|h))\b', text)
        beside = {str(Path(name).parent / one) for one in named}
        assert beside <= files.keys(), f"{name} names {beside - files.keys()}"
        assert "$" not in re.sub(r"\$(ENV)?\{\w+\}|\$<", "", text) or name.endswith(".cc"), name
    compiled = [name for name in files if name.endswith((".cc", ".cpp"))]
    assert len(compiled) == 2
    if project != "arduino":  # which compiles all that is there
        lists = "".join(text for name, text in files.items() if name.endswith("CMakeLists.txt"))
        assert all(f'"{name.removeprefix("main/")}"' in lists for name in compiled)


def test_a_sketch_is_called_as_its_folder(texts: dict[str, str]) -> None:
    files = laid_out("arduino", "my-net_arduino", STEM, NAME, texts)
    assert [name for name in files if name.endswith(".ino")] == ["my-net_arduino.ino"]
    assert {Path(name).suffix for name in files} == {".ino", ".cpp", ".h", ".md"}


@needs_compiler
@pytest.mark.parametrize(("flag", "begins"), [("-DARDUINO=10800", ""), ("-DESP_PLATFORM", "app_main"), ("-DX", "main")])
def test_where_a_program_begins(tmp_path: Path, texts: dict[str, str], flag: str, begins: str) -> None:
    write(tmp_path, texts)
    command = ["g++", "-std=c++17", f"-I{STUBS}", flag, "-c", f"{STEM}_main.cc", "-o", "main.o"]
    subprocess.run(command, cwd=tmp_path, check=True)
    symbols = subprocess.run(["nm", "main.o"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert re.findall(r" T (main|app_main)$", symbols, re.MULTILINE) == [begins] * bool(begins)
    assert re.search(rf" T _Z\d+{NAME}_mainv$", symbols, re.MULTILINE)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins of tflite-micro, which give 0, 1, 2, ... whatever they are given."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "tensorflow").symlink_to(STUBS / "tensorflow")
    (folder / "ports.cc").write_text(ports(read_file(tiny())))
    third = folder / "third" / "flatbuffers" / "include" / "flatbuffers"
    third.mkdir(parents=True)
    (third / "flatbuffers.h").touch()
    library = folder / "gen" / "linux" / "lib"
    library.mkdir(parents=True)
    subprocess.run(["g++", "-std=c++17", f"-I{STUBS}", "-c", "ports.cc"], cwd=folder, check=True)
    subprocess.run(["ar", "-rcs", library / "libtensorflow-microlite.a", "ports.o"], cwd=folder, check=True)
    return folder


@needs_compiler
@needs_cmake
def test_cmake_builds_it_and_the_check_finds_faults(tmp_path: Path, checkout: Path) -> None:
    content = tiny()
    held = check_vector(content, images(1), PIXELS)
    vector = CheckVector(held.inputs, (np.arange(5, dtype=np.int8).reshape(1, 5),), held.of_byte, 0)
    files = laid_out("cmake", "x", STEM, NAME, sources(content, STEM, 5000, vector=vector))
    write(tmp_path, files)
    options = (f"-DTFLITE_MICRO={checkout}", f"-DTHIRD_PARTY={checkout / 'third'}")
    right = built(tmp_path, *options)
    assert right.returncode == 0, right.stderr + right.stdout
    assert "my_net: check: passed\n" in right.stdout
    header = files[f"{STEM}_check.h"]
    write(tmp_path, {f"{STEM}_check.h": header.replace("\n0, 1, 2, 3, 4\n", "\n0, 1, 3, 3, 7\n")})
    wrong = built(tmp_path, *options)
    assert wrong.returncode == 1
    assert wrong.stdout.splitlines()[-2:] == [
        "my_net: check: output 0: 2 of 5 elements differ, element 2 first: 2 here, 3 on the computer",
        "my_net: check: failed: this device does not compute what the computer computed",
    ]
    before, table = files[f"{STEM}.cc"].split("of_byte[3][256] = ")
    table = re.sub(r"-?\d+", lambda x: str(min(127, int(x[0]) + 1)), table)  # as of a mean that is a step less
    write(tmp_path, {f"{STEM}_check.h": header, f"{STEM}.cc": f"{before}of_byte[3][256] = {table}"})
    other = built(tmp_path, *options)
    assert other.returncode == 1
    assert other.stdout.splitlines()[-1] == (
        "my_net: check: failed: input 0 is not what it was on the computer: its preprocessing is another"
    )


@needs_cmake
def test_cmake_says_what_is_missing(tmp_path: Path, checkout: Path, texts: dict[str, str]) -> None:
    write(tmp_path, laid_out("cmake", "x", STEM, NAME, texts))
    half = tmp_path / "half"
    half.mkdir()
    (half / "tensorflow").symlink_to(STUBS / "tensorflow")
    for options, said in (
        ((), "'' is no checkout of tflite-micro: give one with -DTFLITE_MICRO=FOLDER"),
        ((f"-DTFLITE_MICRO={tmp_path}",), f"'{tmp_path}' is no checkout of tflite-micro"),
        ((f"-DTFLITE_MICRO={half}",), f"{half}/gen has 0 libraries, not one: build the target microlite"),
        ((f"-DTFLITE_MICRO={checkout}",), "has no headers of flatbuffers: tflite-micro's Makefile downloads them"),
    ):
        done = built(tmp_path, *options)
        assert done.returncode == 1
        assert said in " ".join(done.stderr.split())


def test_names_that_no_tool_takes(tmp_path: Path) -> None:
    assert project_folder(Path("a/tiny.v2.tflite"), "esp-idf") == Path("a/tiny.v2_esp_idf")
    for stem in ("my net", "naïve", "-x", "x" * 41):
        with pytest.raises(UsageError, match="the tools take 40 letters, digits"):
            project_folder(tmp_path / f"{stem}.tflite", "cmake")


@pytest.mark.slow
@needs_compiler
@needs_cmake
@pytest.mark.skipif(not CHECKOUT, reason="needs a checkout of tflite-micro with its library, in NBCOMPILE_TFLITE_MICRO")
@pytest.mark.parametrize("image", [True, False])
def test_in_tflite_micro_itself(tmp_path: Path, image: bool) -> None:
    content = tiny()
    vector = check_vector(content, images(3), PIXELS if image else None)
    texts = sources(content, STEM, 9000, vector=vector)
    write(tmp_path, laid_out("cmake", "x", STEM, NAME, texts))
    library = next(Path(CHECKOUT).glob("gen/linux_*/lib/libtensorflow-microlite.a"))
    right = built(tmp_path, f"-DTFLITE_MICRO={CHECKOUT}", f"-DTFLITE_MICRO_LIBRARY={library}")
    assert right.returncode == 0, right.stderr
    assert "my_net: check: passed" in right.stdout + right.stderr
    model = unpack(content)
    head = model.buffers[model.subgraphs[0].tensors[model.subgraphs[0].operators[0].inputs[1]].buffer]
    head.data = -head.data.view(np.int8)
    write(tmp_path, sources(pack(model), STEM, 9000, vector=vector))
    wrong = built(tmp_path)
    assert wrong.returncode == 1
    assert re.search(r"check: output 0: \d of 5 elements differ", wrong.stdout + wrong.stderr)
