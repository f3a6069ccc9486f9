"""The int8 hunt: random small CNNs, each of which keeps its outputs, part by part, or is refused by a true sentence.

Network number N is the same text each time (``--one N`` prints it, and what was found). Each is exported in int8 for
each target with default options, calibrated on 64 images, and judged on 64 others, in every interpreter, for every part
of every output: what was joined into one output counts by itself. The judge knows the parts from the text, and asks
nothing of nbcompile but the file.

A verdict is

- ``within``: each part, in the interpreters that the target runs, is at most ``BAND`` dB below what 8 bits can give
  (`_rounded`: the network in PyTorch, every value rounded to 255 steps of its own range), and what the export says of
  unseen samples holds;
- ``refused``: an error of nbcompile's; one that says that integers are too coarse is true if ``_rounded`` is, too;
- ``coarse``: more than ``BAND`` below what 8 bits can give, or refused for that;
- ``overstated``: so few of the 64 reach what the worst of its unseen samples has that what the export says of others is
  false with 95 % probability; it is 95 % sure of it, so one of 20 may be;
- ``traceback``, ``crash``: an exception that is none of nbcompile's; the end of the process.
"""

import json
import re
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import parser, write
from _networks import isolated
from _random_cnns import Cnn, cnn
from _rounded import rounded
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import nbcompile
from nbcompile.core.errors import NBCompileError
from nbcompile.core.numerics import flatten
from nbcompile.exporters.to_tflite.file.options import LEAST_SQNR, held_out
from nbcompile.testing import enliven_

TARGETS = ("raspberrypi", "mcu")
DEVICE = {"raspberrypi": ("xnnpack",), "mcu": ("xnnpack", "micro")}
"""The interpreters that count."""

IMAGES = 64
BAND = 6.0
"""One of the 8 bits, dB."""
VERDICTS = ("within", "refused", "coarse", "overstated", "traceback", "crash")
SECONDS = 300
"""For one network."""

TOGETHER = 8
"""Networks in one process: TensorFlow takes seconds to load."""


@dataclass
class Found:
    """Of one export.

    Attributes:
        possible: dB of each part with every value rounded in PyTorch.
        measured: dB of each part, by interpreter.
        stated: dB of the outputs that the export says, by interpreter.
        in_float: layers that are not in integers.
    """

    seed: int
    target: str
    verdict: str
    possible: list[float] = field(default_factory=list)
    measured: dict[str, list[float]] = field(default_factory=dict)
    stated: dict[str, float] = field(default_factory=dict)
    in_float: int = 0
    sentence: str = ""
    seconds: float = 0.0


def main() -> None:
    made = parser("int8_hunt", __doc__)
    made.add_argument("--count", type=int, default=200, help="networks")
    made.add_argument("--seed", type=int, default=0, help="number of the first network")
    made.add_argument("--minutes", type=float, default=float("inf"), help="no network is begun later")
    made.add_argument("--targets", nargs="+", default=TARGETS, choices=TARGETS)
    made.add_argument(
        "--rows", type=Path, help="what is found is kept there, a line an export, and not looked for again"
    )
    made.add_argument("--one", type=int, help="print this network and what is found; nothing is written")
    args = made.parse_args()
    torch.set_num_threads(1)
    if args.one is not None:
        print(cnn(args.one).network.source)
        for one in judge(args.one, args.targets):
            print(*(f"{key}: {value}" for key, value in asdict(one).items()), sep="\n  ")
        return
    found = kept(args.rows)
    end = time.monotonic() + 60 * args.minutes
    seeds = range(args.seed, args.seed + (3 if args.quick else args.count))
    left = [seed for seed in seeds if seed not in {one.seed for one in found}]
    found = [one for one in found if one.seed in seeds and one.target in args.targets]
    for first in range(0, len(left), TOGETHER):
        if time.monotonic() > end:
            break
        rows = judged(left[first : first + TOGETHER], args.targets)
        found += rows
        if args.rows is not None:
            with args.rows.open("a") as file:
                file.writelines(json.dumps(asdict(one)) + "\n" for one in rows)
        for one in rows:
            print(one.seed, one.target, one.verdict, one.stated or one.sentence, f"{one.seconds:.0f} s", flush=True)
    results = summary(found)
    Console(width=160).print(table(results))
    units = {
        "possible, measured, stated, below_possible, below_stated": "dB",
        "verdicts": "exports",
        "refused": "times",
        "seconds": "s, of one export, median",
    }
    write(args, args.seed, units, results)


def kept(rows: Path | None) -> list[Found]:
    """What earlier runs have found; of several rows of an export the last."""
    if rows is None or not rows.exists():
        return []
    found = (Found(**json.loads(line)) for line in rows.read_text().splitlines())
    return list({(one.seed, one.target): one for one in found}.values())


def judged(seeds: Sequence[int], targets: list[str]) -> list[Found]:
    """In a process of their own; each by itself, if that ends or takes too long."""
    try:
        found: list[Found] = isolated(judge_all, seeds, targets, seconds=SECONDS * len(seeds), gigabytes=14)
    except RuntimeError as error:
        if len(seeds) > 1:
            return [one for seed in seeds for one in judged([seed], targets)]
        return [Found(seeds[0], target, "crash", sentence=str(error)) for target in targets]
    return found


def judge_all(seeds: Sequence[int], targets: list[str]) -> list[Found]:
    return [one for seed in seeds for one in judge(seed, targets)]


def judge(seed: int, targets: list[str]) -> list[Found]:
    """The exports of network number ``seed``."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    one = cnn(seed)
    model, calibration, test = one.network.build().float(), one.images(IMAGES, 1), one.images(IMAGES, 2)
    enliven_(model, calibration, seed=seed)
    with torch.no_grad():
        wanted = flatten(model(test))
    tiny = nbcompile.fuse(model, example_input=(calibration[:2],))
    calibrating = torch.stack(held_out(list(calibration))[0])  # type: ignore[arg-type]
    possible = [decibels(*pair) for pair in parts(one, rounded(tiny, calibrating, test), wanted)]
    found = []
    for target in targets:
        started = time.perf_counter()
        row = _export_judged(one, model, calibration, test, wanted, target, possible)
        row.seconds = time.perf_counter() - started
        found.append(row)
    return found


def _export_judged(
    one: Cnn,
    model: nn.Module,
    calibration: Tensor,
    test: Tensor,
    wanted: list[Tensor],
    target: str,
    possible: list[float],
) -> Found:
    row = Found(one.network.seed, target, "within", possible)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "it.tflite"
            result: Any = nbcompile.export(model, path, calibration[:1], calibration=calibration, target=target)
            content = path.read_bytes()
    except NBCompileError as error:
        coarse = "of signal over noise" in str(error)
        row.verdict = "coarse" if coarse and min(possible) > LEAST_SQNR["int8"] + BAND else "refused"
        row.sentence = str(error).partition("it.tflite: ")[2] or str(error)
        return row
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        row.verdict, row.sentence = "traceback", f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
        return row
    row.in_float = len(result.in_float)
    row.stated = {agreement.kernels: agreement.sqnr for agreement in result.agreements}
    given = {kernels: outputs(result, content, test, kernels) for kernels in row.stated}
    row.measured = {k: [decibels(*pair) for pair in parts(one, y, wanted)] for k, y in given.items()}
    if lacking := _overstated(one, result, given, wanted, target):
        row.verdict, row.sentence = "overstated", lacking
    for kernels in DEVICE[target]:
        measured = row.measured[kernels]
        below = [a - b for a, b in zip(possible, measured, strict=True)]
        if max(below) > BAND:
            row.verdict = "coarse"
            row.sentence = f"part {int(np.argmax(below))}: {max(below):.1f} dB below what 8 bits can give, in {kernels}"
    return row


def outputs(result: Any, content: bytes, test: Tensor, kernels: str) -> list[Tensor]:
    """What a file gives for ``test`` in an interpreter, in PyTorch's layout."""
    # TensorFlow is loaded in the children, which must be forked before it starts its threads.
    from nbcompile.exporters.to_tflite.run.interpreters import run_file

    (port,) = result.inputs
    rows = run_file(content, [(port.to_file(x[None]),) for x in test], kernels=kernels)
    batches = [torch.from_numpy(np.concatenate(y)) for y in zip(*rows, strict=True)]
    return [y.movedim(-1, 1) if port.channels_last else y for y, port in zip(batches, result.outputs, strict=True)]


def parts(one: Cnn, actual: list[Tensor], expected: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pairs of what was joined into the outputs."""
    pairs = zip(actual, expected, one.parts, strict=True)
    return [two for a, b, sizes in pairs for two in zip(a.split(sizes, 1), b.split(sizes, 1), strict=True)]


def decibels(actual: Tensor, expected: Tensor) -> float:
    signal, noise = (float(x.double().square().sum()) for x in (expected, actual - expected))
    return 10 * float(np.log10(max(signal, 1e-30) / max(noise, 1e-30)))


def _overstated(one: Cnn, result: Any, given: dict[str, list[Tensor]], wanted: list[Tensor], target: str) -> str:
    """Of the part that the export speaks of; empty where its claim is true, or may be, since ``IMAGES`` are few."""
    (said,) = [note for note in result.notes if "at least" in note and "95 % sure" in note]
    low, percent = map(float, re.findall(r"worst has (\S+) dB, which at least (\d+)%", said)[0])
    worst = min((a for a in result.agreements if a.kernels in DEVICE[target]), key=lambda a: a.sqnr)
    pairs, share = parts(one, given[worst.kernels], wanted), percent / 100
    judged = worst.parts if len(worst.parts) == len(pairs) else [None] * len(pairs)
    a, b = min(zip(pairs, judged, strict=True), key=lambda x: x[1].sqnr if x[1] else decibels(*x[0]))[0]
    reached = sum(decibels(x, y) >= low - 0.05 for x, y in zip(a, b, strict=True))
    chance = 1.64 * (IMAGES * share * (1 - share)) ** 0.5
    return "" if reached >= share * IMAGES - chance else f"{reached} of {IMAGES} reach {low} dB, not {percent:.0f} %"


def summary(found: list[Found]) -> dict[str, Any]:
    """Counts by target; how far below; refusals by kind; all that is bad."""
    by_target = {}
    for target in dict.fromkeys(one.target for one in found):
        rows = [one for one in found if one.target == target]
        files = [one for one in rows if one.measured]
        by_target[target] = {
            "verdicts": dict.fromkeys(VERDICTS, 0) | Counter(one.verdict for one in rows),
            "partly_in_float": sum(one.in_float > 0 for one in files),
            "parts": sum(len(one.possible) for one in files),
            "below_possible": {k: spread(_below(files, k, "possible")) for k in ("xnnpack", "reference", "micro")},
            "below_stated": {k: spread(_below(files, k, "stated")) for k in ("xnnpack", "reference", "micro")},
            "seconds": float(np.median([one.seconds for one in rows])),
        }
    kinds = Counter(f"{one.target}: {kind_of(one.sentence)}" for one in found if one.verdict == "refused")
    bad = [one for one in found if one.verdict not in ("within", "refused")]
    return {
        "networks": len({one.seed for one in found}),
        "targets": by_target,
        "refused": dict(kinds.most_common()),
        "bad": [{"seed": one.seed, "target": one.target, one.verdict: one.sentence[:300]} for one in bad],
    }


def _below(files: list[Found], kernels: str, what: str) -> list[float]:
    """How far an interpreter stays below what is possible, part by part; below what is stated, in the worst part."""
    rows = [one for one in files if kernels in one.measured]
    if what == "stated":
        return [one.stated[kernels] - min(one.measured[kernels]) for one in rows]
    return [a - b for one in rows for a, b in zip(one.possible, one.measured[kernels], strict=True)]


def spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {name: float(np.percentile(values, q)) for name, q in (("median", 50), ("99 %", 99), ("most", 100))}


def kind_of(sentence: str) -> str:
    """A sentence without its names and numbers."""
    short = re.sub(r"'[^']*'|network_\d+\.py", "'…'", sentence)
    return re.sub(r"-?\d+(\.\d+)?", "N", short)[:200]


def table(results: dict[str, Any]) -> Table:
    heads = (*VERDICTS, "below possible (dB, median and most)", "below stated")
    made = Table("target", *heads, title=f"{results['networks']} random CNNs in int8")
    for target, row in results["targets"].items():
        below = [
            f"{max(s['median'] for s in kept):.1f}, {max(s['most'] for s in kept):.1f}"
            for kept in (
                [row[key][k] for k in DEVICE[target] if row[key][k]] for key in ("below_possible", "below_stated")
            )
            if kept
        ]
        made.add_row(target, *(str(row["verdicts"][v]) for v in VERDICTS), *below)
    return made


if __name__ == "__main__":
    main()
