"""What the files of ``arena.py`` take on an emulated Cortex-M7 with CMSIS-NN: instructions, and the arena of 32 bits.

Each network as it is converted, as ``--target mcu`` arranges it, and with the smallest arena: the generated C++ is
built against a checkout of tflite-micro, run in QEMU, and its outputs are compared with the package's TFLite Micro, to
the bit or the script fails. ``--machines m4 m33 m55`` counts the others' instructions, too.
"""

import argparse
import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from _common import parser, write
from _operators import Operators
from arena import NETWORKS, SEED, converted
from rich.console import Console
from rich.table import Table

from nbcompile.exporters.to_tflite.device.checkout import Checkout, find_checkout
from nbcompile.exporters.to_tflite.device.machines import MACHINES, machine
from nbcompile.exporters.to_tflite.device.proving import Proof, prove_on
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.options import Limits
from nbcompile.exporters.to_tflite.memory.arrange import arrange
from nbcompile.exporters.to_tflite.run.arena import measure_arena
from nbcompile.exporters.to_tflite.run.on_device import on_device, stated_arena
from nbcompile.exporters.to_tflite.targets.micro_sources import sources
from nbcompile.exporters.to_tflite.targets.work import works

NETWORKS["Operators, 24 px"] = (Operators, 24)
UNITS = {"arena, head, tail, needed, file, kept": "bytes", "instructions, steps": "of one inference"}


def main() -> None:
    made = parser("on_device", __doc__)
    made.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    made.add_argument("--machines", nargs="+", default=["m7"])
    made.add_argument("--tflite-micro", type=Path, required=True, help="a checkout, with its downloads")
    made.add_argument("--libraries", type=Path, nargs="+", required=True, help="of the machines, built in the checkout")
    made.add_argument("--revisions", nargs="*", default=[], help="of the checkout and its parts, for the result file")
    made.add_argument("--build", type=Path, default=Path("build-on-device"))
    args = made.parse_args()
    torch.set_num_threads(1)
    names = ["ResNet-8, 32 px"] if args.quick else args.networks
    results = {name: measured(name, args) for name in names}
    for name, found in results.items():
        Console().print(table(name, found))
    args.tflite_micro, args.libraries, args.build = Path("tflite-micro"), [], Path("build-on-device")
    write(args, SEED, UNITS, results)


def measured(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One network: its three files, on every machine."""
    checkouts = {
        one: find_checkout(args.tflite_micro, {}, library)
        for one, library in zip(args.machines, args.libraries, strict=True)
    }
    return {
        way: {
            **_on_64_bit(content),
            **{one: _kept(f"{_slug(name)}_{way}", content, checkout, one, args) for one, checkout in checkouts.items()},
        }
        for way, content in files(name, args.build).items()
    }


def files(name: str, build: Path) -> dict[str, bytes]:
    """The network's files by how their memory is arranged; kept in ``build``, since making them takes minutes."""
    ways = ("converted",) if name.startswith("Operators") else ("converted", "default", "least")
    made = {way: build / f"{_slug(name)}_{way}.tflite" for way in ways}
    if not all(path.exists() for path in made.values()):
        build.mkdir(parents=True, exist_ok=True)
        content = converted(name)
        for way, path in made.items():
            arranged = content if way == "converted" else arrange(content, Limits(least_sram=way == "least")).content
            path.write_bytes(arranged)
    return {way: path.read_bytes() for way, path in made.items()}


def _kept(stem: str, content: bytes, checkout: Checkout, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """What was seen of the file on one machine; kept in the build folder for the next run."""
    path = args.build / f"{stem}-{name}-{hashlib.sha256(content).hexdigest()[:16]}.json"
    if not path.exists():
        path.write_text(json.dumps(_told(content, proved(stem, content, checkout, name, args))))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def proved(stem: str, content: bytes, checkout: Checkout, name: str, args: argparse.Namespace) -> Proof:
    """The file on one machine; outputs that differ end the script."""
    folder = args.build / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    arena = measure_arena(content)
    texts = sources(content, stem, stated_arena(content, arena))
    for file, text in texts.items():
        if not (folder / file).exists() or (folder / file).read_text() != text:
            (folder / file).write_text(text)
    (folder / f"{stem}.tflite").write_bytes(content)
    found = prove_on(folder / f"{stem}.tflite", checkout, machine(name), samples=2, seed=SEED)
    if not found.equal:
        raise SystemExit(f"{stem} on {name}: {found.differing} numbers differ")
    return found


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name.partition(",")[0].lower())


def _on_64_bit(content: bytes) -> dict[str, Any]:
    """What the package measures here, what it computes for a Cortex-M7, and what it states in the C++ header."""
    arena = measure_arena(content)
    there = on_device(content, arena)
    return {
        "64 bit": {"head": arena.head, "tail": arena.tail, "needed": arena.needed, "file": arena.flash},
        "computed": None if there is None else {"head": there.head, "tail": there.tail, "arena": there.total},
        "stated": stated_arena(content, arena),
    }


def _told(content: bytes, proof: Proof) -> dict[str, Any]:
    spent: Counter[str] = Counter()
    alike: defaultdict[str, list[int]] = defaultdict(list)
    for step, work in zip(proof.steps, works(read_file(content)), strict=True):
        spent[step.operator] += step.instructions
        alike[f"{work.kind}: {', '.join(f'{count} {what}' for what, count in work.counts.items())}"].append(
            step.instructions
        )
    return {
        "arena": proof.arena,
        "head": proof.head,
        "tail": proof.tail,
        "kept": {kind: list(row) for kind, row in proof.kept.items()},
        "instructions": proof.instructions,
        "by_operator": dict(spent),
        "steps": [f"{len(own)} × {round(sum(own) / len(own))} of {work}" for work, own in alike.items()],
        "checked_in_the_stated_arena": proof.checked,
    }


def table(name: str, found: dict[str, Any]) -> Table:
    """Each file on each machine."""
    heads = ("", "machine", "activations", "for good", "whole arena", "64 bit", "file", "instructions", "times")
    made = Table(*heads, title=name)
    for way, row in found.items():
        for one in (key for key in row if key in MACHINES):
            times = row[one]["instructions"] / found["converted"][one]["instructions"]
            numbers = (row[one][key] for key in ("head", "tail", "arena"))
            wide = (row["64 bit"]["needed"], row["64 bit"]["file"], row[one]["instructions"])
            made.add_row(way, one, *(f"{number:,}" for number in (*numbers, *wide)), f"{times:.3f}")
    return made


if __name__ == "__main__":
    main()
