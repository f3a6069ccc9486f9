"""Writers that are stopped at random moments of their writing, and writers that meet at one name.

``python -m tests.fuzz.writers WHAT stop SIGNAL ROUNDS`` or ``… WHAT meet WRITERS ROUNDS``: all is imported once, and
each round is a fork. A line of JSON a round: what is wrong, ``""`` where the writer was stopped and all is well, null
where it came to its end.
"""

import atexit
import json
import os
import random
import signal
import stat
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import nbcompile
from nbcompile.cli.ctrl_c import STOPPED, STOPPED_EXIT, one_line
from tests.fuzz.seeds import plain

UMASK = 0o027
TEMPORARY = ".nbcompile-"


class Writer:
    """One verb: what it writes, and how its file is looked at."""

    name = "a.pt"

    def __init__(self) -> None:
        x = torch.randn(2, 3, 8, 8)
        self.network = nbcompile.expand(plain(), x, where=["body"])

    def write(self, path: Path) -> None:
        """Write the file."""
        nbcompile.save(self.network, path)

    def look(self, path: Path) -> object:
        """Read it; raise if it is not whole."""
        return nbcompile.load(path)


class Safetensors(Writer):
    """As fuse writes it."""

    name = "a.safetensors"

    def __init__(self) -> None:
        self.x = torch.randn(1, 3, 8, 8)
        self.network = nbcompile.fuse(plain(), example_input=self.x)

    def write(self, path: Path) -> None:
        """Write the file."""
        nbcompile.export(self.network, path, self.x)

    def look(self, path: Path) -> object:
        """Read it; raise if it is not whole."""
        from safetensors.torch import load_file

        return load_file(path)


class Onnx(Safetensors):
    """As fuse and export write it."""

    name = "a.onnx"

    def look(self, path: Path) -> object:
        """Read it; raise if it is not whole."""
        from nbcompile.exporters import ONNX

        return ONNX.read_layers(path)


class Checkpoint(Writer):
    """As train writes it after each epoch."""

    name = "last.ckpt"

    def write(self, path: Path) -> None:
        """Write the file, and the best network so far."""
        from nbcompile.training import Epoch, TrainConfig
        from nbcompile.training.outputs.run_folder import RunFolder

        run = RunFolder(path.parent)
        numbers = {"loss": 1.0, "train_accuracy": 0.5, "val_accuracy": 0.5, "slope": 1.0, "lr": 0.1, "seconds": 1.0}
        epoch = Epoch(epoch=1, step=1, phase="giant", **numbers)
        if not (path.parent / "config.json").exists():
            run.begin(TrainConfig(), [])
        run.keep(self.network, [epoch])
        run.save({"model": self.network.state_dict(), "epoch": 1}, epoch)

    def look(self, path: Path) -> object:
        """Read it; raise if it is not whole."""
        return torch.load(path, weights_only=True), nbcompile.load(path.with_name("best.ckpt"))


WRITERS: dict[str, type[Writer]] = {"pt": Writer, "safetensors": Safetensors, "onnx": Onnx, "checkpoint": Checkpoint}


def stopped(writer: Writer, path: Path, number: int, rng: random.Random, span: float) -> str | None:
    """Write in a process that gets a signal once it has begun to write; what is wrong then."""
    code, said = _forked(lambda: _armed(number, rng.random() * span), lambda: writer.write(path))
    if number == signal.SIGKILL and code not in (0, -signal.SIGKILL):
        return f"it ended with {code}: {said}"
    if number == signal.SIGINT and (code, said) not in ((0, ""), (STOPPED_EXIT, f"{STOPPED}\n")):
        return f"it ended with {code}: {said}"
    return _not_whole(writer, path) or ("" if code else None)


def met(writer: Writer, path: Path, count: int) -> str | None:
    """Write in several processes at once; what is wrong then."""
    reader, gate = os.pipe()
    started = [_start(lambda: os.close(gate), lambda: (os.read(reader, 1), writer.write(path))) for _ in range(count)]
    os.close(gate)  # all begin
    os.close(reader)
    for process, said in started:
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if (code, text := _text(said)) != (0, ""):
            return f"a writer ended with {code}: {text}"
    if left := [file.name for file in path.parent.iterdir() if TEMPORARY in file.name]:
        return f"they left {left}"
    mode = stat.S_IMODE(path.stat().st_mode)
    return _not_whole(writer, path) or (None if mode == 0o666 & ~UMASK else f"its mode is {mode:o}")


def _not_whole(writer: Writer, path: Path) -> str | None:
    try:
        writer.look(path)
    except Exception:
        return traceback.format_exc()
    return None


def _armed(number: int, after: float) -> None:
    """The signal comes ``after`` seconds from the first temporary file on."""

    def send() -> None:
        time.sleep(after)
        os.kill(os.getpid(), number)

    _at_the_first_temporary(threading.Thread(target=send, daemon=True).start)


def _span(writer: Writer, path: Path) -> float:
    """Seconds from the first temporary file to the end, in a process as each round has one."""
    began: list[float] = []

    def work() -> None:
        writer.write(path)
        print(time.perf_counter() - began[0], file=sys.stderr)

    _, said = _forked(lambda: _at_the_first_temporary(lambda: began.append(time.perf_counter())), work)
    return float(said)


def _at_the_first_temporary(call: Callable[[], object]) -> None:
    """Call it once, when a temporary file is opened."""
    calls = [call]

    def hear(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and TEMPORARY in str(args[0]) and calls:
            calls.pop()()

    sys.addaudithook(hear)


def _forked(first: Callable[[], object], work: Callable[[], object]) -> tuple[int, str]:
    process, said = _start(first, work)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code, _text(said)


def _start(first: Callable[[], object], work: Callable[[], object]) -> tuple[int, Any]:
    """A process that works as the command line does, and the file of what it says."""
    said = tempfile.TemporaryFile()  # noqa: SIM115 - the parent reads it
    process = os.fork()
    if process:
        return process, said
    os.dup2(said.fileno(), 2)
    atexit._clear()  # what the parent registered is not ours to tidy up
    code = 1
    try:
        with one_line():
            first()
            work()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def _text(said: Any) -> str:
    said.seek(0)
    text: str = said.read().decode()
    return text


def _rounds(what: str, how: str, number: int, rounds: int) -> Iterator[str | None]:
    os.umask(UMASK)
    rng = random.Random(what)
    with tempfile.TemporaryDirectory() as folder:
        writer = WRITERS[what]()
        path = Path(folder) / writer.name
        writer.write(path)
        writer.look(path)
        span = _span(writer, path)
        for _ in range(rounds):
            yield stopped(writer, path, number, rng, span) if how == "stop" else met(writer, path, number)
        writer.write(path)
        left = [file.name for file in path.parent.iterdir() if TEMPORARY in file.name]
        yield f"behind it are {left}" if left else None


def main() -> None:
    """Read the words, print the lines."""
    what, how, number, rounds = sys.argv[1:]
    for fault in _rounds(what, how, int(number), int(rounds)):
        print(json.dumps(fault), flush=True)


if __name__ == "__main__":
    main()
