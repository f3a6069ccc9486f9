"""How long an int8 file for a microcontroller takes to make, stage by stage, before and after the search became cheap.

The DS-CNN of MLPerf Tiny's keyword spotting (49 × 10, 64 channels) and torchvision's MobileNetV2 at width 0.35 and 144
pixels, both with random weights and drawn norm statistics, calibrated on 100 samples of noise: `nbcompile.export` with
``target="mcu"``, as a process of its own on one thread. ``before`` is the tree of ``--before``, a commit of this
repository; ``fast`` is ``fast=True``. All take turns.

- ``seconds``: CPU time of the process with its children: user and system. ``export`` is the call alone, without Python,
  torch and the network; ``stages`` are its parts, as the library's own steps tell them. Of several rounds, the least.
- ``sqnr``: of the file's outputs in LiteRT, against PyTorch's, on 256 samples of other noise.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from _common import ROOT, parser, run_process, write
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import nbcompile
from nbcompile.core.progress import StepEvent, listening
from nbcompile.exporters.to_tflite.run.agreement import sqnr
from nbcompile.exporters.to_tflite.run.interpreters import run_file
from nbcompile.testing import scramble_

SEED = 0
BEFORE = "4a01746"
LIMITS = {"kws": 15, "mobilenetv2_035": 60}
SHAPES = {"kws": (1, 49, 10), "mobilenetv2_035": (3, 144, 144)}
WHO = ("before", "after", "fast")
STAGES = {
    "what is imported": ("loading ",),
    "passes": ("making the deploy form", "preparing the network"),
    "torch.export": ("capturing the graph",),
    "TensorFlow's converter": ("converting it to TFLite",),
    "ranges": ("calibrating", "counting values"),
    "quantizer": ("quantizing",),
    "biases": ("correcting biases", "averaging channels"),
    "judging": ("running the network in PyTorch", "measuring its noise"),
    "checks": ("comparing", "finding the error", "measuring its memory"),
    "memory": ("arranging its memory",),
}
"""The first words of the library's steps; what is in none of them is ``rest``."""


class Kws(nn.Module):
    """Banbury et al. 2021, arXiv:2106.07597: a convolution, four separable ones."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.ZeroPad2d((1, 1, 4, 5)), nn.Conv2d(1, 64, (10, 4), 2, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        for _ in range(4):
            for kernel, groups in ((3, 64), (1, 1)):
                conv = nn.Conv2d(64, 64, kernel, padding=kernel // 2, groups=groups, bias=False)
                layers += [conv, nn.BatchNorm2d(64), nn.ReLU()]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 1, 49, 10)`` to logits ``(N, 12)``."""
        y: Tensor = self.head(self.layers(x).mean((2, 3)))
        return y


def network(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """In eval mode, with samples to calibrate and to test on."""
    import torchvision

    torch.manual_seed(SEED)
    model = Kws() if name == "kws" else torchvision.models.mobilenet_v2(width_mult=0.35)
    shape = SHAPES[name]
    return scramble_(model, SEED).eval(), torch.randn(100, *shape), torch.randn(256, *shape)


def main() -> None:
    made = parser("conversion", __doc__)
    made.add_argument("--before", default=BEFORE, help="a commit of this repository")
    made.add_argument("--rounds", type=int, default=2)
    made.add_argument("--one", metavar="NETWORK", help=argparse.SUPPRESS)
    made.add_argument("--fast", action="store_true", help=argparse.SUPPRESS)
    args = made.parse_args()
    torch.set_num_threads(1)
    if args.one:
        one(args.one, args.out, args.fast)
        return
    names = ("kws",) if args.quick else tuple(LIMITS)
    with tempfile.TemporaryDirectory() as folder:
        results = {name: compared(name, args.before, 1 if args.quick else args.rounds, Path(folder)) for name in names}
    show(results)
    units = {"seconds, export, stages": "s of CPU time, one thread", "sqnr": "dB", "bytes": "B"}
    del args.one, args.fast
    write(args, SEED, units, {"limits": LIMITS, "networks": results})


def one(name: str, path: Path, fast: bool) -> None:
    """Make one file, and beside it a JSON of what that took."""
    began: dict[int, float] = {}
    spent: dict[str, float] = defaultdict(float)

    def hear(event: StepEvent) -> None:
        stage = next((stage for stage, words in STAGES.items() if event.path[-1].startswith(words)), None)
        if stage is None:
            return
        if not event.ended:
            began.setdefault(event.number, time.process_time())
        else:
            spent[stage] += time.process_time() - began.pop(event.number)

    model, calibration, _ = network(name)
    options: dict[str, Any] = {"fast": True} if fast else {}
    started = time.process_time()
    with listening(hear):
        result: Any = nbcompile.export(model, path, calibration[:1], calibration=calibration, target="mcu", **options)
    export = time.process_time() - started
    spent["rest"] = export - sum(spent.values())
    found = {"export": export, "stages": dict(spent), "bytes": result.bytes, "taken": result.chosen}
    path.with_suffix(".json").write_text(json.dumps(found | {"tried": len(result.tried)}))


def compared(name: str, before: str, rounds: int, folder: Path) -> dict[str, Any]:
    """The three ways to make one file, in turn."""
    trees = {"before": tree(before, folder / before), "after": ROOT, "fast": ROOT}
    rows: dict[str, Any] = {}
    order = random.Random(SEED)
    for _ in range(rounds):
        for who in order.sample(WHO, len(WHO)):
            path = folder / f"{name}_{who}.tflite"
            command = [sys.executable, __file__, "--one", name, "--out", str(path), *["--fast"] * (who == "fast")]
            _, seconds = run_process(command, PYTHONPATH=str(trees[who]))
            if who not in rows or seconds < rows[who]["seconds"]:
                rows[who] = {"seconds": seconds, **json.loads(path.with_suffix(".json").read_text())}
            rows[who]["sha256"] = sha256(path.read_bytes()).hexdigest()
            rows[who]["sqnr"] = on_others(name, path)
    return {who: rows[who] for who in WHO} | {"same_bytes": rows["before"]["sha256"] == rows["after"]["sha256"]}


def tree(commit: str, folder: Path) -> Path:
    """The files of a commit, with what an installation would make of them."""
    if not folder.exists():
        folder.mkdir()
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "x"], cwd=folder, input=archive, check=True)
        for room in ("passes", "exporters"):
            (folder / "nbcompile" / room).symlink_to(folder / room)
    return folder


def on_others(name: str, path: Path) -> float:
    """Signal over noise on samples that nobody has seen, in LiteRT."""
    model, _, test = network(name)
    with torch.no_grad():
        expected = torch.cat([model(x[None]) for x in test]).numpy()
    given = [(x[None].movedim(1, -1).contiguous().numpy(),) for x in test]
    actual = torch.cat([torch.from_numpy(y) for (y,) in run_file(path.read_bytes(), given)]).numpy()
    return sqnr(actual, expected)


def show(results: dict[str, Any]) -> None:
    for name, row in results.items():
        table = Table("CPU seconds", *WHO, title=f"{name}: at most {LIMITS[name]} s")
        for stage in (*STAGES, "rest"):
            table.add_row(stage, *(f"{row[who]['stages'].get(stage, 0):.1f}" for who in WHO))
        table.add_row("the process", *(f"{row[who]['seconds']:.1f}" for who in WHO))
        table.add_row("SQNR on others, dB", *(f"{row[who]['sqnr']:.2f}" for who in WHO))
        Console().print(table)


if __name__ == "__main__":
    main()
