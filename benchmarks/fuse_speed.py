"""How long ``fuse`` takes over networks' own switches to their deploy form, and how much memory.

Of timm's families that is ``timm.utils.reparameterize_model``, of the others what their authors do (``_switches.py``).
Both go from a built model to a deploy model and leave the built one alone. Beside them ``torch.fx.symbolic_trace``,
which makes the graph that any rewriting of graphs begins with, from code alone. Timed in one process, in turn, one
thread.
Memory is the resident set's peak above what it was before the call, over the model's own bytes (parameters and
buffers): what the call returns is in it, as is all that it held on the way; pages of heap that it reused are not. It is
measured in a fork, in a second call, so that what is only loaded once does not count (Linux: VmHWM, reset through
/proc/self/clear_refs).
"""

import ctypes
import gc
import re
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from _common import alternate, parser, ratios, write, written
from _detectors import NANO, detector
from _networks import isolated
from _switches import DBBMobileNet, blocks_switched, units_switched
from rich.console import Console
from rich.table import Table
from timm.utils import reparameterize_model
from torch import Tensor, fx, nn

import nbcompile
from nbcompile.report.environment import machine_line
from nbcompile.testing import scramble_

SEED = 0
NAMES = (
    *(f"mobileone_s{i}" for i in range(5)),
    *("repvgg_a0", "repvgg_a2", "repvgg_b1", "repvgg_b3"),
    *("repghostnet_050", "repghostnet_200", "repvit_m1", "repvit_m2_3", "fastvit_t8", "fastvit_sa12"),
)
SIZE = 224
"""Side of the images of timm's networks, in pixels."""
LARGE = 100e6
"""Bytes of a model that counts as large."""
LIMITS = {"ratio": 1.0, "ratio_large": 0.5, "memory": 2.0}
OTHERS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], nn.Module], int]] = {
    "YOLOv8n": (partial(detector, "yolov8", NANO), units_switched, 640),
    "DBB-MobileNet": (DBBMobileNet, blocks_switched, 224),
    "EdgeSAM's encoder": (partial(timm.create_model, "repvit_m1"), reparameterize_model, 1024),
}
"""What makes the network, its switch, and the side of its images."""


def main() -> None:
    made = parser("fuse_speed", __doc__)
    made.add_argument("--repeats", type=int, default=5)
    args = made.parse_args()
    torch.set_num_threads(1)
    names = ("mobileone_s0", "repghostnet_050") if args.quick else (*NAMES, *OTHERS)
    rows = [measure(name, args.repeats) for name in names]
    before = committed(args.out)
    title = "fuse over the networks' own switches"
    heads = (
        "network",
        "MB",
        "ours (s)",
        "theirs (s)",
        "ratio",
        "quartiles",
        "trace",
        "memory",
        "theirs",
        "run",
        "committed",
    )
    table = Table(*heads, title=title)
    for row in rows:
        then = before.get(row["model"])
        table.add_row(
            row["model"],
            f"{row['bytes'] / 1e6:.0f}",
            *(f"{row[key]:.3f}" for key in ("ours_seconds", "theirs_seconds", "median")),
            f"{row['quartile_1']:.3f} to {row['quartile_3']:.3f}",
            f"{row['trace_seconds'] / row['theirs_seconds']:.2f}" if row["trace_seconds"] else "none",
            *(f"{row[key]:.2f}" for key in ("ours_memory", "theirs_memory", "run_memory")),
            f"{then['median']:.2f}, {then['ours_memory']:.2f}" if then else "",
            style=None if fine(row) else "red",
        )
    Console().print(table)
    units = {
        "*_seconds": "s",
        "trace_seconds": "s, of torch.fx.symbolic_trace alone; null where it cannot",
        "median, quartile_*": "ratio",
        "*_memory": "peak over the model's own bytes",
        "bytes": "B",
    }
    write(args, SEED, units, {"limits": LIMITS, "large": LARGE, "networks": rows})


def committed(file: Path) -> dict[str, dict[str, Any]]:
    """The rows of the result file, by their networks, if it is of a machine of this kind."""
    known = written(file)
    same = known and known["environment"]["machine"] == machine_line()
    return {row["model"]: row for row in known["results"]["networks"]} if same else {}


def fine(row: dict[str, Any]) -> bool:
    limit = LIMITS["ratio_large" if row["bytes"] >= LARGE else "ratio"]
    return bool(row["median"] <= limit and row["ours_memory"] <= LIMITS["memory"])


def measure(name: str, repeats: int) -> dict[str, Any]:
    memory = {f"{verb}_memory": isolated(peak, name, verb, seconds=300, gigabytes=14) for verb in verbs(name)}
    model = built(name)
    calls = {verb: partial(call, model) for verb, call in verbs(name).items() if verb != "run"}
    traced = {"trace": partial(fx.symbolic_trace, model)} if traceable(model) else {}
    seconds = alternate(calls | traced, repeats)
    medians: dict[str, Any] = {"trace_seconds": None}
    medians |= {f"{verb}_seconds": statistics.median(times) for verb, times in seconds.items()}
    return {"model": name, "bytes": size(model)} | medians | ratios(seconds["ours"], seconds["theirs"]) | memory


def built(name: str) -> nn.Module:
    torch.manual_seed(SEED)
    return scramble_(OTHERS[name][0]() if name in OTHERS else timm.create_model(name)).eval()


def verbs(name: str) -> dict[str, Callable[[nn.Module], object]]:
    """``fuse`` and the network's own switch, and a plain run, whose memory whoever runs the network needs."""
    _, switch, size = OTHERS.get(name, (None, reparameterize_model, SIZE))
    x = torch.zeros(1, 3, size, size)
    fuse = partial(nbcompile.fuse, example_input=x) if name in OTHERS else nbcompile.fuse
    return {"ours": fuse, "theirs": switch, "run": partial(plain_run, x)}


def plain_run(x: Tensor, model: nn.Module) -> object:
    with torch.no_grad():
        return model(x)


def traceable(model: nn.Module) -> bool:
    """Whether torch can trace it from its code."""
    try:
        fx.symbolic_trace(model)
    except Exception:
        return False
    return True


def size(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def peak(name: str, verb: str) -> float:
    """Bytes resident at most above those before, over the model's own."""
    model, call = built(name), verbs(name)[verb]
    call(model)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed pages would hide what is allocated in them
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    made = call(model)
    above = status("VmHWM") - before
    del made
    return above / size(model)


def status(key: str) -> int:
    """Bytes."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    main()
