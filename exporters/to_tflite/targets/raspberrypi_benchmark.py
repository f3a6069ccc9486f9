"""Time ``.tflite`` files on this machine, check their outputs, and say which to ship.

Copy this script and the files into one folder of the device (a Raspberry Pi, say), and run there::

    pip install ai-edge-litert
    python3 THIS_SCRIPT.py

It needs Python 3.10 or newer, NumPy, and one of ai-edge-litert, tflite-runtime and tensorflow. Written by nbcompile.
"""

import argparse
import base64
import hashlib
import importlib.util
import io
import json
import math
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# nbcompile fills in what is between these two lines.
FILES: dict[str, tuple[str, float]] = {}  # names, the smallest first: SHA-256, and what `agreement` must reach, in dB
RANGES: list[tuple[float, float] | None] = []  # of each input: it is drawn between these; None: it is packed
PACKED = ""  # on the computer that wrote this script: inputs of whole numbers, outputs; base64 of an .npz
# nbcompile fills in what is between these two lines.

INTERPRETERS = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite.python.interpreter")
"""Modules that have one, the first choice first."""

Input = tuple[float, float] | np.ndarray
"""Between what it is drawn; or the input itself, where it is whole numbers: not every number is a row of a table."""

WARM_UP = 10
KEPT = 4096
"""About as many values of an output are compared: all of a classifier's, some of a map's."""

NEARLY = 1.05
"""Of two files whose times differ by less, the smaller is to be shipped."""


def interpreter(content: bytes, threads: int) -> Any:
    """An interpreter that is ready to run the file ``content``."""
    module = next((name for name in INTERPRETERS if importlib.util.find_spec(name.split(".")[0])), None)
    if module is None:
        sys.exit("no interpreter of .tflite files is installed: pip install ai-edge-litert")
    made = importlib.import_module(module).Interpreter(model_content=content, num_threads=threads)
    made.allocate_tensors()
    return made


def filled(content: bytes, threads: int, inputs: Sequence[Input]) -> Any:
    """An interpreter of the file ``content`` with inputs that are the same on every machine."""
    session = interpreter(content, threads)
    source = np.random.RandomState(0)  # its numbers are the same in every version of NumPy
    for row, given in zip(session.get_input_details(), inputs, strict=True):
        x = given if isinstance(given, np.ndarray) else source.uniform(*given, row["shape"])
        scale, zero = row["quantization"]
        if scale:
            limits = np.iinfo(row["dtype"])
            x = np.clip(np.round(x / scale) + zero, limits.min, limits.max)
        session.set_tensor(row["index"], x.astype(row["dtype"]))
    return session


def answers(content: bytes, inputs: Sequence[Input]) -> list[np.ndarray]:
    """The outputs of a file, as float32 numbers."""
    session = filled(content, 1, inputs)
    session.invoke()
    outputs = []
    for row in session.get_output_details():
        y, (scale, zero) = session.get_tensor(row["index"]).ravel(), row["quantization"]
        y = y[:: max(1, len(y) // KEPT)].astype(np.float32)
        outputs.append((y - zero) * np.float32(scale) if scale else y)
    return outputs


def agreement(expected: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> float:
    """Signal over difference of the worst output, in dB: infinite where they are equal."""
    ratios = []
    for x, y in zip(expected, outputs, strict=True):
        signal, noise = (float(np.square(z.astype(np.float64)).sum()) for z in (x, x - y))
        ratios.append(math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal else -math.inf)
    return min(ratios)


def times(contents: dict[str, bytes], threads: int, runs: int, inputs: Sequence[Input]) -> dict[str, list[float]]:
    """Milliseconds of each run of each file, in turn: what slows the machine down meets all of them."""
    sessions = {name: filled(content, threads, inputs) for name, content in contents.items()}
    for session in sessions.values():
        for _ in range(min(WARM_UP, runs)):
            session.invoke()
    order = random.Random(0)
    milliseconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(runs):
        for name in order.sample(list(sessions), len(sessions)):
            started = time.perf_counter()
            sessions[name].invoke()
            milliseconds[name].append(1000 * (time.perf_counter() - started))
    return milliseconds


def packed() -> dict[str, np.ndarray]:
    """What the computer that wrote this script packed."""
    return dict(np.load(io.BytesIO(base64.b64decode(PACKED))))


def checks(contents: dict[str, bytes], inputs: Sequence[Input], known: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Print and return how far the outputs of each file are from the expected ones."""
    rows = []
    for i, (name, content) in enumerate(contents.items()):
        expected = [y for key, y in known.items() if key.startswith(f"{i}_")]
        ratio = agreement(expected, answers(content, inputs))
        right, same = ratio >= FILES[name][1], ratio == math.inf
        said = "equal to" if same else f"{ratio:.1f} dB from"
        print(f"{name}: {len(content):,} B, outputs {said} the expected ones{'' if right else ': WRONG'}")
        rows.append(
            {"file": name, "bytes": len(content), "agreement_db": "equal" if same else round(ratio, 1), "right": right}
        )
    return rows


def timings(
    contents: dict[str, bytes], threads: Sequence[int], runs: int, inputs: Sequence[Input]
) -> list[dict[str, Any]]:
    """Print and return the median and 90th percentile, in milliseconds, of each file with each count of threads."""
    rows = []
    print(f"{'file':32} {'threads':>7} {'median ms':>10} {'p90 ms':>10}")
    for count in threads:
        for name, spent in times(contents, count, runs, inputs).items():
            median, p90 = statistics.median(spent), sorted(spent)[math.ceil(0.9 * len(spent)) - 1]
            print(f"{name:32} {count:7} {median:10.3f} {p90:10.3f}")
            rows.append({"file": name, "threads": count, "median_ms": median, "p90_ms": p90})
    return rows


def advice(medians: dict[tuple[str, int], float]) -> str:
    """Which file to ship with how many threads, from milliseconds by both."""
    enough = NEARLY * min(medians.values())
    # Files come smallest first; of one file, the threads that are fastest.
    best = min(
        (key for key, t in medians.items() if t <= enough), key=lambda key: (list(FILES).index(key[0]), medians[key])
    )
    others = {name: min(t for (n, _), t in medians.items() if n == name) for name in FILES if name != best[0]}
    against = "; ".join(
        f"{name} takes {t:.3f} ms at best ({t / medians[best]:.2f} times)" for name, t in others.items()
    )
    return f"Ship {best[0]} with {best[1]} thread{'s' * (best[1] > 1)}: {medians[best]:.3f} ms. {against}."


def load(folder: Path) -> dict[str, bytes]:
    """The files; a sentence and the end of the program if one is missing or is another one."""
    contents = {}
    for name, (digest, _) in FILES.items():
        if not (folder / name).exists():
            sys.exit(f"{name} is not beside this script: copy it to {folder}")
        contents[name] = (folder / name).read_bytes()
        if hashlib.sha256(contents[name]).hexdigest() != digest:
            sys.exit(f"{name} is not the file that this script was written for: copy both again")
    return contents


def machine() -> str:
    """What this machine calls itself."""
    board = Path("/proc/device-tree/model")
    name = board.read_text().strip("\0\n ") if board.exists() else platform.system()
    return f"{name}, {platform.machine()}, {os.cpu_count()} cores"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything; 0, or 1 if a file's outputs are not as expected."""
    parser = argparse.ArgumentParser(description="Time .tflite files on this machine, and say which to ship.")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--runs", type=int, default=100, help="measured runs of each file")
    parser.add_argument("--json", type=Path, help="write the numbers to this file, too")
    args = parser.parse_args(arguments)
    contents = load(Path(__file__).resolve().parent)
    print(machine())
    known = packed()
    inputs = [known[f"input_{i}"] if between is None else between for i, between in enumerate(RANGES)]
    checked = checks(contents, inputs, known)
    timed = timings(contents, args.threads, args.runs, inputs)
    right = all(row["right"] for row in checked)
    verdict = "Ship nothing yet: outputs are wrong on this machine."
    if right:
        verdict = advice({(row["file"], row["threads"]): row["median_ms"] for row in timed})
    print(verdict)
    if args.json:
        result = {"machine": machine(), "checks": checked, "times": timed, "advice": verdict}
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
