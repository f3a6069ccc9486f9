"""How the time of each verb grows with the depth of a network, in CPU seconds of one thread.

A chain has ``units`` times convolution → norm → ReLU, with 8 channels on maps of 7 × 5; the linear chain is of
convolutions alone, which ``fuse`` may merge as it likes. Beside them ``expand`` of networks as they are. All is
run on a short chain first, so that nothing is loaded on the way. What is run is the
``nbcompile`` that Python finds: with ``--as before`` and an older tree on ``PYTHONPATH``, that tree's numbers are put
into the same file.
"""

import gc
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
from _common import parser, write, written
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import nbcompile
from nbcompile.cli.run.inspect import run_inspect
from nbcompile.report.environment import machine_line
from nbcompile.testing import scramble_

SEED = 0
WIDTH = 8
UNITS = (50, 100, 200, 400, 800)
LINEAR = (10, 20, 40, 80, 160)
ROWS = ("fuse", "cost", "inspect", "expand", "fuse of the giant", "load of the giant", "fuse, functional form")
LINEAR_ROW = "fuse, linear chain"
NETWORKS = (
    *("mobilenetv2_100", "resnet50", "densenet121", "efficientnet_b0"),
    *("convnext_tiny", "vit_tiny_patch16_224"),
)
PATIENCE = 300
"""Seconds: a row ends where the next call would take longer, if it grew as it did."""
LIMITS = {"ratio": 2.2, "ratio_linear": 3.0, "expand_800": 8.0, "fuse_giant_800": 8.0, "networks": 0.5}


def main() -> None:
    made = parser("growth", __doc__)
    made.add_argument(
        "--as", dest="label", default="after", choices=("before", "after"), help="whose numbers these are"
    )
    made.add_argument(
        "--upto", type=int, default=max(UNITS), metavar="UNITS", help="the longest chain; nothing is written"
    )
    made.add_argument("--rows", nargs="+", default=[*ROWS, LINEAR_ROW], help="only these; nothing is written")
    made.add_argument("--no-networks", action="store_true", help="chains only; nothing is written")
    args = made.parse_args()
    torch.set_num_threads(1)
    known = written(args.out).get("results", {})
    if args.quick:
        args.upto = min(UNITS)
    for row in args.rows:  # what is loaded when it is first used
        measure(row, 4)
    ours = {"commit": commit(), "machine": machine_line(), "rows": {row: timed(row, args.upto) for row in args.rows}}
    networks = () if args.no_networks or args.quick else NETWORKS
    ours["networks"] = {name: network_seconds(name) for name in networks}
    show(ours, known)
    if args.upto < max(UNITS) or len(args.rows) <= len(ROWS) or args.no_networks:
        print("a quick look: nothing is written")
        return
    units = {"rows": "CPU seconds by the number of units", "networks": "CPU seconds of expand"}
    write(args, SEED, units, {"limits": LIMITS, **known, args.label: ours})


def timed(row: str, upto: int) -> dict[str, float]:
    """CPU seconds by the number of units."""
    seconds: dict[str, float] = {}
    last = growth = 0.0
    for units in LINEAR if row == LINEAR_ROW else UNITS:
        shown = units * (max(UNITS) // max(LINEAR)) if row == LINEAR_ROW else units
        if shown > upto or last * growth > PATIENCE:
            break
        now = measure(row, units)
        growth = now / last if last else 2.0
        last = seconds[str(units)] = now
        print(f"{row}: {units} units {now:.2f} s", flush=True)
    return seconds


def measure(row: str, units: int) -> float:
    """CPU seconds of the verb of ``row``, what leads to it not counted."""
    torch.manual_seed(SEED)
    x = torch.randn(2, WIDTH, 7, 5)
    if row == LINEAR_ROW:
        linear = nn.Sequential(*(nn.Conv2d(WIDTH, WIDTH, 1) for _ in range(units))).eval()
        return spent(lambda: nbcompile.fuse(linear, example_input=x))
    model = (Functional(units) if row == "fuse, functional form" else chain(units)).eval()
    if row.startswith("fuse") and "giant" not in row:
        return spent(lambda: nbcompile.fuse(model, example_input=x))
    if row == "cost":
        return spent(lambda: nbcompile.cost(model, x))
    if row == "expand":
        return spent(lambda: nbcompile.expand(model, x))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pt"
        if row == "inspect":
            nbcompile.save(model, path, x)
            return spent(lambda: run_inspect(str(path), model=None, key=None, input_shape=None))
        giant = nbcompile.expand(model, x)
        nbcompile.PLT(giant, steps=1).step()
        if row == "fuse of the giant":
            return spent(lambda: nbcompile.fuse(giant))
        nbcompile.save(giant, path, proof=False)
        return spent(lambda: nbcompile.load(path))


def spent(call: Callable[[], object]) -> float:
    """CPU seconds; of calls that take less than two, the fastest of three."""
    taken: list[float] = []
    while len(taken) < 3 and sum(taken) < 2:
        gc.collect()
        started = time.process_time()
        call()
        taken.append(time.process_time() - started)
    return min(taken)


def network_seconds(name: str) -> float:
    torch.manual_seed(SEED)
    model = scramble_(timm.create_model(name)).eval()
    seconds = spent(lambda: nbcompile.expand(model, torch.randn(1, 3, 224, 224)))
    print(f"expand of {name}: {seconds:.2f} s", flush=True)
    return seconds


def chain(units: int) -> nn.Module:
    def unit() -> Iterator[nn.Module]:
        yield from (nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())

    return scramble_(nn.Sequential(*(nn.Sequential(*unit()) for _ in range(units))))


class Functional(nn.Module):
    """The chain in functions: its weights are parameters of its own."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.units = units
        for i in range(units):
            self.register_parameter(f"weight{i}", nn.Parameter(torch.randn(WIDTH, WIDTH, 3, 3) / WIDTH))
            self.register_parameter(f"scale{i}", nn.Parameter(1 + torch.rand(WIDTH)))
            self.register_parameter(f"shift{i}", nn.Parameter(torch.rand(WIDTH)))
            self.register_buffer(f"mean{i}", torch.rand(WIDTH))
            self.register_buffer(f"var{i}", 1 + torch.rand(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 8, H, W)`` to the same."""
        for i in range(self.units):
            weight, *norm = (getattr(self, f"{name}{i}") for name in ("weight", "mean", "var", "scale", "shift"))
            x = F.relu(F.batch_norm(F.conv2d(x, weight, padding=1), *norm))
        return x


def show(ours: dict[str, Any], known: dict[str, Any]) -> None:
    """Each row beside the committed ones of the same machine kind, with the ratio of its last doubling."""
    others = {label: found for label, found in known.items() if label in ("before", "after")}
    sets = {f"{label}, committed": found for label, found in others.items() if found["machine"] == machine_line()}
    table = Table(
        "row", "of", *(f"{n}" for n in UNITS), "× per doubling", title="CPU seconds (linear chain: units / 5)"
    )
    for row in ours["rows"]:
        for label, found in {**sets, "now": ours}.items():
            seconds = list(found["rows"].get(row, {}).values())
            cells = [f"{value:.2f}" for value in seconds] + [""] * (len(UNITS) - len(seconds))
            table.add_row(row, label, *cells, " ".join(f"{ratio:.1f}" for ratio in doublings(seconds)))
    for name, seconds in ours["networks"].items():
        for label, found in sets.items():
            then = found["networks"].get(name)
            table.add_row(f"expand of {name}", label, f"{then:.2f}" if then else "")
        table.add_row(f"expand of {name}", "now", f"{seconds:.2f}")
    Console().print(table)


def doublings(seconds: Sequence[float]) -> list[float]:
    return [after / before for before, after in pairwise(seconds)]


def commit() -> str:
    """The commit of the tree that ``nbcompile`` was imported from, with a ``+`` if files differ from it."""

    def git(*words: str) -> str:
        home = Path(nbcompile.__file__).resolve().parent
        return subprocess.run(["git", *words], cwd=home, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")


if __name__ == "__main__":
    main()
