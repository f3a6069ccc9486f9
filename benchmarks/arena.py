"""How little memory a network takes on a stock interpreter: what TFLite Micro itself reports of every arrangement.

Random weights, every tensor made to matter, calibrated on noise; the package's TFLite Micro, on a 64-bit machine. Of
each network the file as it is converted, then ways from that to the least memory: activations (the arena's head), what
stays (its tail), the whole arena, the file. No way has more multiply-accumulates. Every file is compared with the one
as converted, on random integers, in TFLite Micro and in LiteRT: equal to the bit, or the script fails.
"""

import time
from typing import Any

import torch
from _common import parser, write
from rich.console import Console
from rich.table import Table

import nbcompile
from nbcompile.deploy.deploy_form import deploy
from nbcompile.exporters.to_tflite.build import Samples, build_file
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.options import Recipe
from nbcompile.exporters.to_tflite.memory.arrange import FREE, arranged, prove_equal
from nbcompile.exporters.to_tflite.memory.draft import Draft
from nbcompile.exporters.to_tflite.memory.emit import emit
from nbcompile.exporters.to_tflite.memory.order import reordered
from nbcompile.exporters.to_tflite.memory.search import Way, ways
from nbcompile.exporters.to_tflite.run.arena import measure_arena
from nbcompile.testing import enliven_

SEED = 0
NETWORKS = {
    "MobileNetV2-Tiny, 144 px": (nbcompile.zoo.mobilenetv2_tiny, 144),
    "MCUNet, 176 px": (nbcompile.zoo.mcunet, 176),
    "MobileNetV1-0.25, 96 px": (nbcompile.zoo.mobilenetv1_25, 96),
    "ResNet-8, 32 px": (nbcompile.zoo.resnet8, 32),
}
SHOWN = 8
"""Ways of each network, evenly chosen."""


def main() -> None:
    made = parser("arena", __doc__)
    made.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    args = made.parse_args()
    torch.set_num_threads(1)
    names = ["ResNet-8, 32 px"] if args.quick else args.networks
    results = {name: measured(name) for name in names}
    for name, found in results.items():
        Console().print(table(name, found))
    write(
        args,
        SEED,
        {"head, tail, needed, file": "bytes", "work": "share of the MACs", "search, laid_out": "s of CPU"},
        results,
    )


def measured(name: str) -> dict[str, Any]:
    """One network."""
    content = converted(name)
    before = measure_arena(content)
    ordered = emit(content, reordered(Draft.of(read_file(content))))
    file = read_file(ordered)
    began = time.process_time()
    found = ways(file)
    searched = time.process_time() - began
    free = next(way for way in sorted(found, key=lambda w: w.peak + w.kept) if way.work <= FREE * found[0].macs)
    least_whole = min(found, key=lambda way: way.peak + way.kept)
    chosen = {id(way): way for way in (*found[:: max(1, len(found) // SHOWN)], free, least_whole, found[-1])}
    rows = [row(content, ordered, way, way is free) for way in sorted(chosen.values(), key=lambda w: -w.peak)]
    return {
        "macs": found[0].macs,
        "ways": len(found),
        "search": searched,
        "converted": {"head": before.head, "tail": before.tail, "needed": before.needed, "file": before.flash},
        "rows": rows,
    }


def converted(name: str) -> bytes:
    """The network's int8 file, as it is converted."""
    make, side = NETWORKS[name]
    torch.manual_seed(SEED)
    inputs = (torch.randn(1, 3, side, side),)
    model = enliven_(make().eval(), *inputs, seed=SEED)
    samples = [(x[None],) for x in torch.randn(8, 3, side, side)]
    graph = deploy(model, inputs)
    return build_file(graph, inputs, Samples.of(model, inputs, samples, samples[:2]), Recipe(), micro=True).content


def row(content: bytes, ordered: bytes, way: Way, free: bool) -> dict[str, Any]:
    """What TFLite Micro reports of one way."""
    began = time.process_time()
    made = arranged(ordered, read_file(ordered), way)
    seconds = time.process_time() - began
    prove_equal(content, made.content)
    return {
        "regions": [list(region) for region in way.regions],
        "estimated": way.peak,
        "head": made.arena.head,
        "at_once": max(made.arena.live),
        "tail": made.arena.tail,
        "needed": made.arena.needed,
        "file": made.arena.flash,
        "work": way.work / way.macs,
        "laid_out": seconds,
        "without_a_budget": free,
    }


def table(name: str, found: dict[str, Any]) -> Table:
    """As it is converted, and by each way."""
    heads = ("activations", "at once", "plan over it", "stays", "whole arena", "file", "more work", "strips")
    made = Table("", *heads, title=f"{name}, {found['ways']} ways in {found['search']:.0f} s")
    one = found["converted"]
    made.add_row(
        "as converted", f"{one['head']:,}", "", "", *(f"{one[key]:,}" for key in ("tail", "needed", "file")), "", ""
    )
    for way in found["rows"]:
        first = (f"{way['head']:,}", f"{way['at_once']:,}", f"{way['head'] / way['at_once']:.3f}")
        numbers = (*first, *(f"{way[key]:,}" for key in ("tail", "needed", "file")))
        strips = " ".join(f"{a}:{b}:{n}" for a, b, n in way["regions"])
        made.add_row("default" if way["without_a_budget"] else "", *numbers, f"{way['work']:.1%}", strips)
    return made


if __name__ == "__main__":
    main()
