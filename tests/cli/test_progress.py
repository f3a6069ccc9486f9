"""Lines that a command shows on a terminal while it works: a real one, and what is left on it in the end."""

import io
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbcompile.cli import progress
from nbcompile.cli.progress import StepLines, progress_shown
from nbcompile.core.progress import StepEvent, listening, step
from nbcompile.training.command import run_train

UNTRAINED = "nbcompile: 'nbcompile:dscnn' is built without weights: this exports an untrained network"
FUSE = ("fuse", "nbcompile:dscnn", "-o", "t.tflite", "--calibration", "images.npz", "--equalize", "never")


def screen(data: bytes) -> list[str]:
    """What a terminal shows after ``data``: rows without blanks at their ends."""
    rows, y, x = [""], 0, 0
    for code, final, letter in re.findall(r"\x1b\[([0-9;?]*)([A-Za-z])|([^\x1b])", data.decode(), re.DOTALL):
        if letter == "\r":
            x = 0
        elif letter == "\n":
            y += 1
            rows += [""] * (y == len(rows))
        elif letter:
            rows[y], x = rows[y].ljust(x)[:x] + letter + rows[y][x + 1 :], x + 1
        elif final == "A":
            y -= int(code)
        elif final == "K":
            rows[y] = ""
            assert code == "2"
        else:
            assert final in "mhl", f"unknown: {code}{final}"
    return [row.rstrip() for row in rows]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "images.npz", np.random.RandomState(0).randn(40, 1, 8, 8).astype("f4"))
    return tmp_path


def typed(folder: Path, *words: str, stop_at: str | None = None) -> tuple[int, bytes]:
    """Exit code and all bytes of a command typed at a terminal; Ctrl-C is typed when ``stop_at`` shows."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.environ["TERM"] = "xterm"
        os.execv(sys.executable, [sys.executable, "-m", "nbcompile", *words])
    data = b""
    while True:
        try:
            data += os.read(terminal, 65536)
        except OSError:  # Linux: nobody is at the other end any more
            break
        if stop_at is not None and stop_at.encode() in data:
            os.write(terminal, b"\x03")
            stop_at = None
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), data


@pytest.mark.slow
def test_a_terminal_shows_what_is_done_and_keeps_none_of_it(folder: Path) -> None:
    code, data = typed(folder, *FUSE, "--min-sqnr", "-99")
    assert code == 0, data
    for name in ("loading what writing .tflite files needs", "writing t.tflite", "  trying: as it is (1 of 2)"):
        assert name.encode() in data
        assert not any(name in row for row in screen(data))
    first, *tables = screen(data)
    assert first == UNTRAINED
    assert tables[1].split()[:2] == ["MACs", "FLOPs"]
    assert data.rindex(b"\x1b[?25h") > data.rindex(b"\x1b[?25l")  # the cursor is back


@pytest.mark.slow
def test_ctrl_c_leaves_one_line(folder: Path) -> None:
    code, data = typed(folder, "fuse", "nbcompile:dscnn", "-o", "t.onnx", stop_at="writing t.onnx")
    assert code == 130
    first, second, *rest = screen(data)
    assert first == UNTRAINED
    assert "stopped" in second
    assert not any(rest)


@pytest.mark.slow
def test_a_pipe_gets_nothing(folder: Path) -> None:
    """Whatever colours the environment asks for."""
    words = [sys.executable, "-m", "nbcompile", "fuse", "nbcompile:dscnn", "-o", "t.pt", "--json", "-"]
    environment = os.environ | {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "TERM": "xterm"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[0] == UNTRAINED
    assert "\x1b" not in done.stderr
    assert done.stdout.startswith("{")


def test_a_training_run_shows_itself(tmp_path: Path) -> None:
    """Its bars stand alone: what it does between them (expanding, fusing) says nothing beside them."""
    events: list[StepEvent] = []
    model = "nbcompile:dscnn?num_classes=10&in_channels=1"
    options: dict[str, Any] = {"epochs": 2, "batch_size": 256, "warmup_epochs": 1, "accelerator": "cpu"}
    with listening(events.append):
        run_train(model, output=tmp_path / "trained.pt", method="netbooster", quiet=True, **options)
    assert [event.path for event in events if not event.ended] == [("building the network",)]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, io.TextIOWrapper]]:
    """Both ends of a terminal, which shows everything at once."""
    monkeypatch.setattr(progress, "AT_ONCE", 0.0)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        yield ours, stream
    os.close(ours)


def shown(terminal: int) -> list[str]:
    os.set_blocking(terminal, False)
    data = b""
    with suppress(BlockingIOError):
        while True:
            data += os.read(terminal, 65536)
    return screen(data)


def test_steps_inside_others_are_indented_and_counted(terminal: tuple[int, io.TextIOWrapper]) -> None:
    ours, theirs = terminal
    with ExitStack() as stack:
        lines = StepLines(theirs, stack)
        with listening(lines), step("writing"), step("calibrating", total=4) as advance:
            advance()
            from rich.console import Console

            table = io.StringIO()
            Console(file=table, width=60, color_system=None).print(lines._table())
        with listening(lines), step("reading") as advance:
            advance()
            advance()
            assert [step.done for step, _ in lines._steps.values()] == [2]
    assert [row.split() for row in re.sub("[━╸╺]+", "━", table.getvalue()).splitlines()] == [
        ["writing", "0:00"],
        ["calibrating", "━", "1/4", "0:00"],
    ]
    assert table.getvalue().splitlines()[1].startswith("  calibrating ━")
    assert shown(ours) == [""]


def test_names_of_files_are_no_markup_and_one_line(terminal: tuple[int, io.TextIOWrapper]) -> None:
    _, theirs = terminal
    with ExitStack() as stack, listening(lines := StepLines(theirs, stack)), step("writing a[red][/b]:x:\n\x1b[2J.pt"):
        from rich.console import Console

        table = io.StringIO()
        Console(file=table, width=60, color_system=None).print(lines._table())
    assert table.getvalue().split("  ")[0] == r"writing a[red][/b]:x:\n\x1b[2J.pt"


def test_what_is_logged_meanwhile_stays(
    terminal: tuple[int, io.TextIOWrapper], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = terminal
    monkeypatch.setattr(sys, "stderr", theirs)
    handler, other = logging.StreamHandler(), logging.StreamHandler(io.StringIO())
    other.setLevel(logging.CRITICAL)
    other.stream.close()  # one that cannot even be flushed is left alone
    logger = logging.getLogger("nbcompile")
    monkeypatch.setattr(logger, "handlers", [handler, other])

    @step("writing x.onnx")
    def fail() -> None:
        logger.warning("look at this")
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"), progress_shown():
        fail()
    logger.warning("and at that")
    theirs.flush()
    assert handler.stream is sys.stderr is theirs
    assert shown(ours) == ["look at this", "and at that", ""]


def test_terminals_that_take_nothing_back_get_nothing(
    terminal: tuple[int, io.TextIOWrapper], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = terminal
    monkeypatch.setattr(sys, "stderr", theirs)
    monkeypatch.setenv("TERM", "dumb")
    with progress_shown(), step("writing x.onnx"):
        theirs.write("x")
        theirs.flush()
    assert os.read(ours, 100) == b"x"
