"""A MobileNetV2 in int8: noise, memory, operators, size and time of the files for each target.

torchvision's MobileNetV2 at width 0.35 and 144 pixels, random weights, batch-norm statistics from ten training-mode
batches of noise; calibrated on noise and tested on other noise. Written for a Raspberry Pi, for a microcontroller, and
for microcontrollers with less and less memory (``sram`` is the whole arena: head and tail).

- ``sqnr``: power of PyTorch's outputs over that of the difference, on the test noise, in LiteRT with XNNPACK, with its
  reference kernels, and in TFLite Micro.
- ``lsb``: the largest difference from the int8 outputs of the Raspberry Pi's file, in steps, with the same interpreter
  on the test noise. For this the files are written once more without equalizing and bias correction, which choose by
  the data.
- ``arena``: as TFLite Micro measures it here. The head holds activations; the tail descriptions with pointers, which
  are half as long on a microcontroller.
- ``latency``: of the files with XNNPACK, one thread, in turn, over the Raspberry Pi's file.
- ``latency_over``: the same over other tools' files of this network, which are rows of their own (``--against``).

A budget that cannot be met is a row with its sentence.
"""

import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from _common import alternate, parser, ratios, write
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import nbcompile
from nbcompile.core.errors import ExportError
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.run.agreement import compared
from nbcompile.exporters.to_tflite.run.arena import Arena, measure_arena
from nbcompile.exporters.to_tflite.run.interpreters import Sample, load_file, run_file

SEED = 0
PIXELS, WIDTH = 144, 0.35
STARTS = 20
BUDGETS = ("320K", "256K", "208K")
BASE = "raspberrypi"
KERNELS = ("xnnpack", "reference", "micro")
PLAIN = {"equalize": "never", "correct_bias": "never"}
LIMITS: dict[str, Any] = {
    "sqnr": 37.6, "micro_below_litert": 0.3, "lsb": 1,
    "pad": {BASE: 4}, "transpose": 0, "bytes": {BASE: 1_891_472}, "head": {"mcu": 165_888}, "macs_ratio": 1.0,
    "latency_over": {BASE: 1.05},
}  # fmt: skip
"""dB; steps; operators; bytes; executed over logical multiply-accumulates. A limit without a target is for all."""

UNITS = {
    "sqnr": "dB",
    "lsb": "steps of the output's scale",
    "bytes, arena.*": "B",
    "macs, executed_macs": "of one sample",
    "latency": "ratio to the Raspberry Pi's file, XNNPACK, one thread",
    "latency_over": "ratio to the other tool's file, likewise",
    "milliseconds": "ms, median",
    "seconds": "s, of the export",
}


@dataclass(frozen=True)
class Noise:
    """Random inputs with what the network gives for them, as files take and give them."""

    inputs: list[Sample]
    outputs: list[Sample]

    @classmethod
    def of(cls, model: nn.Module, x: Tensor) -> "Noise":
        """``x`` in torch layout."""
        with torch.no_grad():
            y = model(x)
        images = np.ascontiguousarray(x.movedim(1, -1).numpy())
        return cls([(one[None],) for one in images], [(one[None],) for one in y.numpy()])


@dataclass(frozen=True)
class Row:
    """A file; counts of operators by name."""

    target: str
    sqnr: dict[str, float]
    arena: dict[str, Any]
    ops: dict[str, int]
    bytes: int


@dataclass(frozen=True)
class Peer(Row):
    """Another tool's file; the target is the tool."""

    input: str


@dataclass(frozen=True)
class Ours(Row):
    """Our file for one target."""

    done: str
    lsb: dict[str, int]
    macs: int
    executed_macs: int
    seconds: float
    notes: tuple[str, ...]


def main() -> None:
    made = parser("int8", __doc__)
    made.add_argument("--calibration", type=int, default=100, help="samples of noise")
    made.add_argument("--test", type=int, default=64, help="samples of noise")
    made.add_argument("--budgets", nargs="+", default=BUDGETS, help="for the arena on a microcontroller")
    made.add_argument("--repeats", type=int, default=2000, help="of each file, to time it")
    made.add_argument("--save", type=Path, metavar="FOLDER", help="put the network there for int8_peers.py, and stop")
    made.add_argument("--against", type=Path, metavar="FOLDER", help="where int8_peers.py put its files")
    args = made.parse_args()
    pixels = PIXELS
    if args.quick:
        pixels, args.calibration, args.test, args.repeats, args.budgets = 64, 8, 4, 2 * STARTS, ("160K", "16K")
    torch.set_num_threads(1)
    model = network(pixels)
    calibration, tested = noise(args.calibration, pixels, 1), noise(args.test, pixels, 2)
    if args.save:
        return save(args.save, model, calibration)
    test = Noise.of(model, tested)
    peers = others(args.against, test) if args.against else {}
    rows: list[Ours] = []
    refused: dict[str, str] = {}
    contents: dict[str, bytes] = {}
    base: dict[str, list[Sample]] = {}
    for target, options in targets(args.budgets).items():
        try:
            content, row = measure(model, calibration, test, target, options, base)
        except ExportError as error:
            refused[target] = str(error).partition(": ")[2]
            print(f"{target}: {refused[target]}", flush=True)
            continue
        contents[target] = content
        rows.append(row)
        print(row, flush=True)
    times = timed(contents | {tool: content for tool, (content, _) in peers.items()}, test, args.repeats)
    Console(width=180).print(table([*rows, *(row for _, row in peers.values())], times, list(peers)))
    results = {
        "limits": LIMITS,
        "network": f"torchvision mobilenet_v2(width_mult={WIDTH}), {pixels} pixels",
        "files": [asdict(row) | latency(row.target, times, list(peers)) for row in rows],
        "refused": refused,
    }
    if args.against:
        found = [asdict(row) | latency(tool, times, []) for tool, (_, row) in peers.items()]
        results["peers"] = {"files": found, "versions": json.loads((args.against / "versions.json").read_text())}
    write(args, SEED, UNITS, results)


def network(pixels: int) -> nn.Module:
    torch.manual_seed(SEED)
    model: nn.Module = torchvision.models.mobilenet_v2(width_mult=WIDTH).train()
    with torch.no_grad():
        for _ in range(10):
            model(torch.randn(16, 3, pixels, pixels))
    return model.eval()


def noise(count: int, pixels: int, seed: int) -> Tensor:
    return torch.randn(count, 3, pixels, pixels, generator=torch.Generator().manual_seed(seed))


def save(folder: Path, model: nn.Module, calibration: Tensor) -> None:
    """What ``int8_peers.py`` reads: another version of torch need not give the same random numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"width": WIDTH, "weights": model.state_dict(), "calibration": calibration}
    torch.save(content, folder / "network.pt")
    print(f"written: {folder / 'network.pt'}")


def others(folder: Path, test: Noise) -> dict[str, tuple[bytes, Peer]]:
    """Other tools' files, by the tool's name."""
    found: dict[str, tuple[bytes, Peer]] = {}
    for path in sorted(folder.glob("*.tflite")):
        content = path.read_bytes()
        file = read_file(content)
        x = file.tensors[file.inputs[0]]
        row = Peer(path.stem, **facts(content, test, measure_arena(content)), input=f"{x.dtype} {list(x.shape)}")
        print(row, flush=True)
        found[path.stem] = content, row
    return found


def targets(budgets: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Options of the export, by the name of the row."""
    fitted = {f"mcu --sram {budget}": {"target": "mcu", "sram": budget} for budget in budgets}
    return {BASE: {"target": BASE}, "mcu": {"target": "mcu"}, **fitted}


def measure(
    model: nn.Module, calibration: Tensor, test: Noise, target: str, options: dict[str, Any], base: dict[str, Any]
) -> tuple[bytes, Ours]:
    """The file, and what is known of it; ``base`` keeps the outputs that the other files must give."""
    with tempfile.TemporaryDirectory() as folder:
        write_to = partial(
            nbcompile.export, model, Path(folder) / "tiny.tflite", calibration[:1], calibration=calibration, **options
        )
        plain = write_to(**PLAIN).path.read_bytes()
        result = write_to()
        content = result.path.read_bytes()
    outputs = {kernels: run_file(plain, test.inputs, kernels=kernels, raw=True) for kernels in KERNELS}
    base = base or base.update(outputs) or base
    sqnr = result.agreements[0].sqnr
    return content, Ours(
        target=target,
        **facts(content, test, result.arena),
        done=min(result.tried, key=lambda trial: abs(trial.sqnr - sqnr)).how,
        lsb={kernels: largest(outputs[kernels], base[kernels]) for kernels in KERNELS},
        macs=result.macs,
        executed_macs=result.executed_macs,
        seconds=result.seconds,
        notes=result.notes,
    )


def facts(content: bytes, test: Noise, arena: Arena) -> dict[str, Any]:
    """What is known of any file."""
    agreements = {kernels: compared(content, test.inputs, test.outputs, kernels=kernels) for kernels in KERNELS}
    return {
        "sqnr": {kernels: found.sqnr for kernels, found in agreements.items()},
        "arena": {key: getattr(arena, key) for key in ("head", "tail", "needed", "peak_layer")},
        "ops": dict(Counter(op.name for op in read_file(content).ops)),
        "bytes": len(content),
    }


def largest(outputs: list[Sample], others: list[Sample]) -> int:
    """Of the differences of stored values."""
    pairs = zip(outputs, others, strict=True)
    return max(int(np.abs(a[0].astype(int) - b[0].astype(int)).max()) for a, b in pairs)


def timed(contents: dict[str, bytes], test: Noise, repeats: int) -> dict[str, list[float]]:
    """Seconds of each file, in LiteRT, one thread.

    All are started ``STARTS`` times, in an order drawn anew: interpreters of one and the same file differ by up to 3 %
    for as long as they live (by where their memory lies, it seems).
    """
    order = random.Random(SEED)
    seconds: dict[str, list[float]] = {target: [] for target in contents}
    for _ in range(STARTS):
        calls: dict[str, Callable[[], object]] = {}
        for target in order.sample(list(contents), len(contents)):
            file = read_file(contents[target])
            sample = tuple(file.tensors[i].quantized(x) for i, x in zip(file.inputs, test.inputs[0], strict=True))
            calls[target] = partial(load_file(contents[target], "xnnpack").run, sample)
        for target, times in alternate(calls, repeats // STARTS).items():
            seconds[target] += times
    return seconds


def latency(target: str, times: dict[str, list[float]], peers: list[str]) -> dict[str, Any]:
    """Of one file, over the Raspberry Pi's and over other tools'."""
    found = {
        "latency": ratios(times[target], times[BASE]),
        "milliseconds": 1e3 * float(np.median(times[target])),
    }
    return found | ({"latency_over": {tool: ratios(times[target], times[tool]) for tool in peers}} if peers else {})


def table(rows: list[Row], times: dict[str, list[float]], peers: list[str]) -> Table:
    heads = ("dB: XNNPACK", "reference", "Micro", "LSB", "head (B)", "arena (B)", "PAD", "TRANSPOSE", "file (B)")
    over = (f"latency over {base}" for base in (BASE, *peers))
    made = Table("target", *heads, "MACs", *over, title="MobileNetV2-0.35 in int8")
    for row in rows:
        ours = row if isinstance(row, Ours) else None
        found = [ratios(times[row.target], times[base]) for base in (BASE, *peers)]
        made.add_row(
            row.target,
            *(f"{row.sqnr[kernels]:.2f}" for kernels in KERNELS),
            str(max(ours.lsb.values())) if ours else "",
            *(f"{row.arena[key]:,}" for key in ("head", "needed")),
            *(str(row.ops.get(name, 0)) for name in ("PAD", "TRANSPOSE")),
            f"{row.bytes:,}",
            f"{ours.executed_macs / ours.macs:.3f}" if ours else "",
            *(f"{x['median']:.2f} ({x['quartile_1']:.2f} to {x['quartile_3']:.2f})" for x in found),
            style="red" if ours and missed(ours) else None,
        )
    return made


def missed(row: Ours) -> list[str]:
    """The limits that a file does not keep; times and the head for the smallest budget are not judged here."""
    micro = row.target != BASE
    wrong = {
        "sqnr": row.sqnr["xnnpack"] < LIMITS["sqnr"],
        "micro_below_litert": row.sqnr["xnnpack"] - row.sqnr["micro"] > LIMITS["micro_below_litert"],
        "lsb": max(row.lsb.values()) > LIMITS["lsb"],
        "pad": not micro and row.ops.get("PAD", 0) > LIMITS["pad"][BASE],
        "transpose": row.ops.get("TRANSPOSE", 0) > LIMITS["transpose"],
        "bytes": row.target in LIMITS["bytes"] and row.bytes > LIMITS["bytes"][row.target],
        "head": row.target == "mcu" and row.arena["head"] > LIMITS["head"]["mcu"],
        "macs_ratio": row.executed_macs / row.macs > LIMITS["macs_ratio"],
    }
    return [name for name, over in wrong.items() if over]


if __name__ == "__main__":
    main()
