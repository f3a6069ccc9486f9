"""Which networks become ``.tflite``: float32 and int8, run in LiteRT and in TFLite Micro.

The paper's four networks, torchvision's and timm's of the same kind, and a vision transformer. Random weights, every
tensor made to matter (``nbcompile.testing.enliven_``); small inputs, since TFLite Micro's plain loops are slow here.
Each is calibrated on noise and tested on other noise, in a process of its own. Equalizing and bias correction are off:
what is asked here is whether everything converts, and what the integers alone cost. No SQNR is asked for either; where
it is below the limit that an export has by default, the row is red.

A network that does not convert, or does not run, is a row with its sentence.
"""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import PAPER, parser, write
from _networks import isolated
from rich.console import Console
from rich.table import Table

import nbcompile
from nbcompile.models import build
from nbcompile.testing import enliven_

SEED = 0
NETWORKS = {
    **{f"nbcompile:{name}": 96 for name in PAPER},
    "torchvision:mobilenet_v3_small": 96,
    "torchvision:shufflenet_v2_x1_0": 96,
    "torchvision:efficientnet_b0": 96,
    "torchvision:resnet18": 64,
    "timm:deit_tiny_patch16_224?img_size=96": 96,
}
"""MODEL strings, and the side of the input in pixels."""

SCHEMES = ("float32", "int8")
KERNELS = ("xnnpack", "micro")


def main() -> None:
    made = parser("int8_networks", __doc__)
    made.add_argument("--models", nargs="+", default=list(NETWORKS), choices=NETWORKS, help="some of them")
    made.add_argument("--calibration", type=int, default=16, help="samples of noise")
    made.add_argument("--test", type=int, default=8, help="samples of noise")
    args = made.parse_args()
    if args.quick:
        args.models, args.calibration, args.test = ["torchvision:resnet18"], 4, 2
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for spec in args.models:
        for scheme in SCHEMES:
            row: dict[str, Any] = {"network": spec, "pixels": NETWORKS[spec], "scheme": scheme}
            try:
                found = isolated(measure, spec, scheme, args.calibration, args.test, seconds=1200, gigabytes=14)
            except RuntimeError as error:
                found = {"failure": str(error)}
            rows.append(row | found)
            print(rows[-1], flush=True)
    Console(width=160).print(table(rows))
    units = {
        "sqnr": "dB, outputs against PyTorch's, on the test noise, by interpreter",
        "bytes, arena.*": "B",
        "seconds": "s, of the export with its checks",
        "ops": "operators in the file",
        "macs": "of one sample",
    }
    write(args, SEED, units, rows)


def measure(spec: str, scheme: str, calibrating: int, testing: int) -> dict[str, Any]:
    # TensorFlow is loaded in the children, which must be forked before it starts its threads.
    from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
    from nbcompile.exporters.to_tflite.file.options import LEAST_SQNR
    from nbcompile.exporters.to_tflite.run.agreement import compared

    torch.manual_seed(SEED)
    pixels = NETWORKS[spec]
    model = build(spec, f"1x3x{pixels}x{pixels}").model.eval()
    calibration, test = (torch.randn(count, 3, pixels, pixels) for count in (calibrating, testing))
    enliven_(model, calibration, seed=SEED)
    with tempfile.TemporaryDirectory() as folder:
        result = nbcompile.export(
            model,
            Path(folder) / "tiny.tflite",
            test[:1],
            calibration=calibration,
            quantize=scheme,
            equalize="never",
            correct_bias="never",
            min_sqnr=-100,  # how it is, is what is asked here
        )
        content = result.path.read_bytes()
    with torch.no_grad():
        outputs = model(test).numpy()
    file = read_file(content)
    last = file.tensors[file.inputs[0]].shape[-1] == 3
    images = np.ascontiguousarray((test.movedim(1, -1) if last else test).numpy())
    given, expected = [(x[None],) for x in images], [(y[None],) for y in outputs]
    ran = [found.kernels for found in result.agreements]
    ops = Counter(op.name for op in file.ops)
    sqnr = {name: compared(content, given, expected, kernels=name).sqnr for name in KERNELS if name in ran}
    return {
        "sqnr": sqnr,
        "fine": min(sqnr.values()) >= LEAST_SQNR[scheme],
        "ops": dict(ops),
        "pad": sum(count for name, count in ops.items() if name.startswith("PAD")),
        "transpose": ops["TRANSPOSE"],
        "bytes": result.bytes,
        "arena": {key: getattr(result.arena, key) for key in ("head", "tail", "needed")},
        "macs": result.macs,
        "seconds": result.seconds,
        "notes": result.notes,
    }


def table(rows: list[dict[str, Any]]) -> Table:
    heads = ("pixels", "scheme", "LiteRT (dB)", "Micro (dB)", "ops", "PAD", "TRANSPOSE", "file (B)", "head (B)", "s")
    made = Table("network", *heads, title="As .tflite")
    for row in rows:
        if "failure" in row:
            made.add_row(row["network"], str(row["pixels"]), row["scheme"], row["failure"], style="red")
            continue
        made.add_row(
            row["network"],
            str(row["pixels"]),
            row["scheme"],
            *(f"{row['sqnr'][name]:.1f}" if name in row["sqnr"] else "not run" for name in KERNELS),
            str(sum(row["ops"].values())),
            *(str(row[key]) for key in ("pad", "transpose")),
            f"{row['bytes']:,}",
            f"{row['arena']['head']:,}",
            f"{row['seconds']:.0f}",
            style=None if row["fine"] else "red",
        )
    return made


if __name__ == "__main__":
    main()
