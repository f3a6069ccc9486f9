"""Reads damaged files, one after the other, in a process of its own: ``python -m tests.fuzz.worker KIND FOLDER``.

It is told the number of a case, which is the seed of what is damaged; it makes the file, reads it as the command line
would, and tells what came of it. What a file must not bring about ends up in ``fault``.
"""

import json
import os
import random
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 5
"""Of the processor, that reading one file may take."""

MIB = 1024
"""Of memory, that the whole process may have used while it read."""

FORBIDDEN = ("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.")
FORBIDDEN += ("socket.", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "shutil.", "webbrowser.")

OUT_OF_MEMORY = re.compile(r"bad_alloc|allocate |MemoryError")

Case = tuple[Callable[[random.Random], None], Callable[[], Any]]
"""What makes the file, and what reads it."""


class Watch:
    """What Python does while a file is read."""

    def __init__(self) -> None:
        self.looking = False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.looking:
            return
        written = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if written or event.startswith(FORBIDDEN):
            self.seen.append(f"{event} {args[:2]}")


def attempt(number: int, case: Case, watch: Watch) -> dict[str, Any]:
    """Make case ``number`` and read it: ``said`` of a refusal, ``fault`` where it is none, ``seconds`` and ``mib``."""
    make, read = case
    make(random.Random(number))
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory starts anew
    began = time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (int(began) + SECONDS + 2, resource.RLIM_INFINITY))
    said = fault = None
    watch.seen.clear()
    watch.looking = True
    try:
        read()
    except Exception as error:
        said = str(error)
        if not _is_told(error):
            fault = traceback.format_exc()
    watch.looking = False
    seconds, mib = time.process_time() - began, _peak()
    if watch.seen:
        fault = f"it did {watch.seen}"
    elif seconds > SECONDS or mib > MIB:
        fault = f"{seconds:.1f} s, {mib} MiB"
    elif said is not None and ("\n" in said or not said or len(said) > 2000 or OUT_OF_MEMORY.search(said)):
        fault = f"no sentence: {said[:3000]}"
    return {"number": number, "said": said, "fault": fault, "seconds": seconds, "mib": mib}


def _is_told(error: Exception) -> bool:
    """Whether the command line makes one sentence of it."""
    from nbcompile.core.errors import NBCompileError

    return isinstance(error, NBCompileError | OSError)


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def main() -> None:
    """Answer on the standard output that was there at the start; what libraries print goes nowhere."""
    kind, folder = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    from tests.fuzz import kinds

    case = getattr(kinds, kind)(Path(folder))
    watch = Watch()
    print(json.dumps("ready"), file=answers)
    for line in sys.stdin:
        print(json.dumps(attempt(int(line), case, watch)), file=answers)


if __name__ == "__main__":
    main()
