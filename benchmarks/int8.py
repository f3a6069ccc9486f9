"""A MobileNetV2 in int8: noise, memory, operators, size and time of the files for each target.

torchvision's MobileNetV2 at width 0.35 and 144 pixels, random weights, batch-norm statistics from ten training-mode
batches of noise; calibrated on noise and tested on other noise. Written for a Raspberry Pi, for a microcontroller, and
for microcontrollers with less and less memory (``sram`` is the whole arena: head and tail).

- ``sqnr``: power of PyTorch's outputs over that of the difference, on the test noise, in LiteRT with XNNPACK, with its
  reference kernels, and in TFLite Micro.
- ``lsb``: the largest difference from the int8 outputs of the Raspberry Pi's file, in steps, with the same interpreter
  on the test noise. For this the files are written once more without equalising and bias correction, which choose by
  the data.
- ``arena``: as TFLite Micro measures it here. The head holds activations; the tail descriptions with pointers, which
  are half as long on a microcontroller.
- ``latency``: of the files with XNNPACK, one thread, in turn, over the Raspberry Pi's file.

A budget that cannot be met is a row with its sentence.
"""

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
from nbcompile.exporters.tflite_check import compared
from nbcompile.exporters.tflite_file import read
from nbcompile.exporters.tflite_runtime import Sample, run, start

SEED = 0
PIXELS, WIDTH = 144, 0.35
BUDGETS = ("320K", "256K", "192K")
BASE = "raspberrypi"
KERNELS = ("xnnpack", "reference", "micro")
PLAIN = {"equalize": "never", "correct_bias": "never"}
LIMITS: dict[str, Any] = {
    "sqnr": 37.6, "micro_below_litert": 0.3, "lsb": 1,
    "pad": {BASE: 4, "mcu": 0}, "transpose": 0, "bytes": {BASE: 1_891_472, "mcu": 1_893_392},
    "head": {"mcu": 311_040, "mcu --sram": 171_072}, "macs_ratio": 1.1,
}  # fmt: skip
"""dB; steps; operators; bytes; executed over logical multiply-accumulates. A limit without a target is for all."""

UNITS = {
    "sqnr": "dB",
    "lsb": "steps of the output's scale",
    "bytes, arena.*": "B",
    "macs, executed_macs": "of one sample",
    "latency": "ratio to the Raspberry Pi's file",
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
    """The file of one target; counts of operators by name."""

    target: str
    done: str
    sqnr: dict[str, float]
    lsb: dict[str, int]
    arena: dict[str, Any]
    ops: dict[str, int]
    bytes: int
    macs: int
    executed_macs: int
    seconds: float
    notes: tuple[str, ...]


def main() -> None:
    made = parser("int8", __doc__)
    made.add_argument("--calibration", type=int, default=100, help="samples of noise")
    made.add_argument("--test", type=int, default=64, help="samples of noise")
    made.add_argument("--budgets", nargs="+", default=BUDGETS, help="for the arena on a microcontroller")
    made.add_argument("--repeats", type=int, default=300, help="of each file, to time it")
    args = made.parse_args()
    pixels = PIXELS
    if args.quick:
        pixels, args.calibration, args.test, args.repeats, args.budgets = 64, 8, 4, 10, ("160K", "16K")
    torch.set_num_threads(1)
    model = network(pixels)
    calibration, tested = noise(args.calibration, pixels, 1), noise(args.test, pixels, 2)
    test = Noise.of(model, tested)
    rows: list[Row] = []
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
    latency = timed(contents, test, args.repeats)
    Console(width=160).print(table(rows, latency))
    results = {
        "limits": LIMITS,
        "network": f"torchvision mobilenet_v2(width_mult={WIDTH}), {pixels} pixels",
        "files": [asdict(row) | latency[row.target] for row in rows],
        "refused": refused,
    }
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


def targets(budgets: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Options of the export, by the name of the row."""
    fitted = {f"mcu --sram {budget}": {"target": "mcu", "sram": budget} for budget in budgets}
    return {BASE: {"target": BASE}, "mcu": {"target": "mcu"}, **fitted}


def measure(
    model: nn.Module, calibration: Tensor, test: Noise, target: str, options: dict[str, Any], base: dict[str, Any]
) -> tuple[bytes, Row]:
    """The file, and what is known of it; ``base`` keeps the outputs that the other files must give."""
    with tempfile.TemporaryDirectory() as folder:
        write_to = partial(
            nbcompile.export, model, Path(folder) / "tiny.tflite", calibration[:1], calibration=calibration, **options
        )
        plain = write_to(**PLAIN).path.read_bytes()
        result = write_to()
        content = result.path.read_bytes()
    outputs = {kernels: run(plain, test.inputs, kernels=kernels, raw=True) for kernels in KERNELS}
    base = base or base.update(outputs) or base
    agreements = {kernels: compared(content, test.inputs, test.outputs, kernels=kernels) for kernels in KERNELS}
    sqnr = result.agreements[0].sqnr
    arena = result.arena
    return content, Row(
        target=target,
        done=min(result.tried, key=lambda trial: abs(trial.sqnr - sqnr)).how,
        sqnr={kernels: found.sqnr for kernels, found in agreements.items()},
        lsb={kernels: largest(outputs[kernels], base[kernels]) for kernels in KERNELS},
        arena={key: getattr(arena, key) for key in ("head", "tail", "needed", "peak_layer")},
        ops=dict(Counter(op.name for op in read(content).ops)),
        bytes=len(content),
        macs=result.macs,
        executed_macs=result.executed_macs,
        seconds=result.seconds,
        notes=result.notes,
    )


def largest(outputs: list[Sample], others: list[Sample]) -> int:
    """Of the differences of stored values."""
    pairs = zip(outputs, others, strict=True)
    return max(int(np.abs(a[0].astype(int) - b[0].astype(int)).max()) for a, b in pairs)


def timed(contents: dict[str, bytes], test: Noise, repeats: int) -> dict[str, dict[str, Any]]:
    """Of each file, in LiteRT, one thread."""
    calls: dict[str, Callable[[], object]] = {}
    for target, content in contents.items():
        file = read(content)
        sample = tuple(file.tensors[i].quantised(x) for i, x in zip(file.inputs, test.inputs[0], strict=True))
        calls[target] = partial(start(content, "xnnpack").run, sample)
    seconds = alternate(calls, repeats)
    return {
        target: {"latency": ratios(times, seconds[BASE]), "milliseconds": 1e3 * float(np.median(times))}
        for target, times in seconds.items()
    }


def table(rows: list[Row], latency: dict[str, Any]) -> Table:
    heads = ("dB: XNNPACK", "reference", "Micro", "LSB", "head (B)", "arena (B)", "PAD", "TRANSPOSE", "file (B)")
    made = Table("target", *heads, "MACs", "latency", title="MobileNetV2-0.35 in int8")
    for row in rows:
        ratio = latency[row.target]["latency"]
        made.add_row(
            row.target,
            *(f"{row.sqnr[kernels]:.2f}" for kernels in KERNELS),
            str(max(row.lsb.values())),
            *(f"{row.arena[key]:,}" for key in ("head", "needed")),
            *(str(row.ops.get(name, 0)) for name in ("PAD", "TRANSPOSE")),
            f"{row.bytes:,}",
            f"{row.executed_macs / row.macs:.3f}",
            f"{ratio['median']:.2f} ({ratio['quartile_1']:.2f} to {ratio['quartile_3']:.2f})",
            style="red" if missed(row) else None,
        )
    return made


def missed(row: Row) -> list[str]:
    """The limits that a file does not keep; that of the head is for the smallest budget alone, and not judged here."""
    micro = row.target != BASE
    kind = "mcu" if micro else BASE
    wrong = {
        "sqnr": row.sqnr["xnnpack"] < LIMITS["sqnr"],
        "micro_below_litert": row.sqnr["xnnpack"] - row.sqnr["micro"] > LIMITS["micro_below_litert"],
        "lsb": max(row.lsb.values()) > LIMITS["lsb"],
        "pad": row.ops.get("PAD", 0) > LIMITS["pad"][kind],
        "transpose": row.ops.get("TRANSPOSE", 0) > LIMITS["transpose"],
        "bytes": row.target in LIMITS["bytes"] and row.bytes > LIMITS["bytes"][row.target],
        "head": row.target == "mcu" and row.arena["head"] > LIMITS["head"]["mcu"],
        "macs_ratio": row.executed_macs / row.macs > LIMITS["macs_ratio"],
    }
    return [name for name, over in wrong.items() if over]


if __name__ == "__main__":
    main()
