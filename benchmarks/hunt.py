"""The hunt: random networks of ordinary code, each of which comes back right, or is refused by a sentence with a place.

Network number N is the same text each time (``--one N`` prints it, and what was found; with ``--shrink`` its smallest
part of which the same is found). In float64, on calls at three
batch sizes one after the other and at another height and width, where the network itself runs:

1. ``fuse`` against the network; its optional arguments, given later: right or refused.
2. ``expand`` of all layers, norms scrambled, slopes to 1, ``fuse``: against the giant, as the original's class and as
   the deploy form; and the giant that preserves the layers against the network.
   With ``--only trained``: giants of both dtypes whose weights moved by little or much, beside channels that are silent
   on the example: none that could be made may be refused.
3. ``save``, ``load`` without the class, ``fuse``: of the giant; of the network where it has no giant.
4. ONNX of some (``--onnx``): ``verify`` of the file against its own network, and ONNX Runtime at two batch sizes, in
   float32.
5. Float TFLite of some (``--tflite``): in the interpreters with which ``export`` checks it.

A verdict is ``right``, ``refused``, ``wrong`` (other outputs), ``changed`` (the caller's model or inputs were), or
``traceback`` (an exception that is none of nbcompile's). Of the refusals those count apart that no trait of the network
asks for (Python reads no values, nothing depends on the batch, nothing is kept from call to call), and those that name
no line and no layer.
"""

import gc
import logging
import multiprocessing
import re
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import _random_changes  # noqa: F401  registers statements
import _random_statements  # noqa: F401
import torch
from _common import parser, write
from _judge import GOOD, VERDICTS, Found, judge, shrunk, steps_of
from _random_networks import network
from rich.console import Console
from rich.progress import track
from rich.table import Table


def main() -> None:
    made = parser("hunt", __doc__)
    made.add_argument("--count", type=int, default=20_000, help="networks")
    made.add_argument("--seed", type=int, default=0, help="number of the first network")
    made.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    made.add_argument("--minutes", type=float, help="no network is begun later")
    made.add_argument("--onnx", type=int, default=0, help="how many of them are exported to ONNX, too")
    made.add_argument("--tflite", type=int, default=0, help="how many of them are exported to float TFLite, too")
    made.add_argument("--only", choices=("trained", "onnx", "tflite"), help="this of all of them, and no other check")
    made.add_argument("--one", type=int, help="print this network and what is found; nothing is written")
    made.add_argument("--shrink", action="store_true", help="with --one: print what is left when all is gone that can")
    args = made.parse_args()
    if args.one is not None:
        settle()
        show(args.one, (args.only,) if args.only else steps_of(args.onnx > 0, args.tflite > 0), args.shrink)
        return
    count = 20 if args.quick else args.count
    jobs = [
        (args.seed + n, (args.only,) if args.only else steps_of(n < args.onnx, n < args.tflite)) for n in range(count)
    ]
    found = hunted(jobs, args.jobs, args.minutes)
    results = summary(found)
    Console().print(table(results))
    for number, said in results["bad"].items():
        print(number, said)
    write(args, args.seed, {"steps": "networks", "refused": "times"}, results)


def hunted(jobs: list[tuple[int, tuple[str, ...]]], processes: int, minutes: float | None) -> list[Found]:
    """In the order of their numbers; what was not begun in time is left out."""
    end = time.monotonic() + 60 * minutes if minutes else float("inf")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=settle) as pool:
        futures = [pool.submit(judge_until, end, *job) for job in jobs]
        done = [future.result() for future in track(as_completed(futures), "networks", total=len(futures))]
    return sorted((found for found in done if found is not None), key=lambda found: found.seed)


def judge_until(end: float, seed: int, steps: tuple[str, ...]) -> Found | None:
    return judge(network(seed), steps) if time.monotonic() < end else None


def settle() -> None:
    """Of a process: one thread, no warnings; what is imported is garbage never."""
    gc.collect()
    gc.freeze()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def summary(found: list[Found]) -> dict[str, Any]:
    """Counts by step; refusals by kind; the numbers of all that is bad."""
    steps: dict[str, Counter[str]] = {}
    kinds: Counter[str] = Counter()
    example: dict[str, int] = {}
    for one in found:
        for step, (verdict, sentence) in one.steps.items():
            count = steps.setdefault(step, Counter(dict.fromkeys(VERDICTS, 0)))
            count[verdict] += 1
            if verdict == "refused":
                count["refused_without_trait"] += not one.traits
                count["refused_without_place"] += not placed(sentence, one.seed)
                kind = kind_of(sentence)
                kinds[f"{step}: {kind}"] += 1
                example.setdefault(f"{step}: {kind}", one.seed)
    bad = [one for one in found if one.worst() not in GOOD]
    return {
        "networks": len(found),
        "that_run": sum(bool(one.steps) for one in found),
        "without_traits": sum(not one.traits for one in found),
        "steps": steps,
        "refused": {kind: {"times": n, "first": example[kind]} for kind, n in kinds.most_common()},
        "bad": {
            str(one.seed): {s: ": ".join(v)[:300] for s, v in one.steps.items() if v[0] not in GOOD} for one in bad
        },
    }


def placed(sentence: str, seed: int) -> bool:
    """It names a line of the network, or a part of it."""
    return f"network_{seed}.py:" in sentence or re.search(r"'[\w.]+'", sentence) is not None


def kind_of(sentence: str) -> str:
    """A sentence without its names and numbers."""
    short = re.sub(r"/\S+/|network_\d+\.py", "", sentence)
    short = re.sub(r"'[^']*'", "'…'", short)
    return re.sub(r"\b(Part|Taker)?\d+\b", "N", short)[:160]


def table(results: dict[str, Any]) -> Table:
    heads = (*VERDICTS, "refused_without_trait", "refused_without_place")
    made = Table("step", *(head.replace("_", " ") for head in heads), title=f"{results['networks']} random networks")
    for step, counts in results["steps"].items():
        made.add_row(step, *(str(counts[head]) for head in heads))
    return made


def show(seed: int, steps: tuple[str, ...], shrink: bool = False) -> None:
    """The text of a network, with the numbers of its lines, and what is found."""
    one = network(seed)
    if shrink:
        one = shrunk(one, steps)
    for number, line in enumerate(one.source.splitlines(), 1):
        print(f"{number:4} {line}")
    print("inputs:", *(tuple(spec.shape) for spec in one.inputs), "traits:", *(one.traits or {"none"}))
    for step, (verdict, sentence) in judge(one, steps).steps.items():
        print(f"{step}: {verdict} {sentence}")


if __name__ == "__main__":
    main()
