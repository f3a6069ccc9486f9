"""Files that belong together are those of one run, however many write the same names."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from nbcompile.core import files
from nbcompile.core.files import alone_in, atomic

NAMES = ("a.tflite", "a.h", "a.cc")
RUN = """
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from nbcompile.core.files import alone_in, atomic
names, run = sys.argv[2:5], sys.argv[5]
print("ready", flush=True)
sys.stdin.read(1)
for _ in range(10):
    with alone_in(Path.cwd()) if sys.argv[1] == "alone" else nullcontext(), ExitStack() as stack:
        for name in names:
            stack.enter_context(atomic(name)).write_text(run)
    with alone_in(Path.cwd()):
        print(len({Path(name).read_text() for name in names}))
"""


def seen(folder: Path, how: str) -> set[str]:
    """Of how many runs the files are, whenever one of four looks at them."""
    command = [sys.executable, "-c", RUN, how, *NAMES]
    runs = [
        subprocess.Popen([*command, str(n)], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for n in range(4)
    ]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    for run in runs:  # all begin
        assert run.stdin is not None
        run.stdin.write("x")
        run.stdin.flush()
    counts = {count for run in runs for count in run.communicate()[0].split()}
    assert [run.returncode for run in runs] == [0, 0, 0, 0]
    assert sorted(os.listdir(folder)) == sorted(NAMES)
    return counts


@pytest.mark.slow
def test_the_files_are_of_one_run(tmp_path: Path) -> None:
    assert seen(tmp_path, "alone") == {"1"}
    assert seen(tmp_path, "each for itself") != {"1"}  # so it was looked at the right moments


def test_who_holds_it_for_ever_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_WAIT", 0.05)
    with alone_in(tmp_path), alone_in(tmp_path), ExitStack() as stack:
        stack.enter_context(atomic(tmp_path / "a.pt")).write_text("whole")
    assert (tmp_path / "a.pt").read_text() == "whole"


def test_a_file_system_that_locks_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, what: int) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("fcntl.flock", refuse)
    with alone_in(tmp_path):
        (tmp_path / "a.pt").write_text("whole")
