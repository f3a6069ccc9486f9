"""What the int8-aware finish does for accuracy: one RepVGG, its int8 files before and after.

The RepVGG of ``int8_accuracy.py`` is trained on CIFAR-10 as there, then finished (``nbcompile train --int8``). Measured
on all held-out images: the float network before the finish and after it; int8 files of the network before it, made from
a calibration set as it is and as ``nbcompile`` does by default; and the int8 file after it, which takes the ranges that
training recorded and no calibration set. TFLite Micro runs a few hundred images.

One seed, and a short training: the differences say what the rounding of int8 costs this network, the accuracies do not
say how good it can get. ``--data`` is as of ``int8_accuracy.py``.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import parser, write
from int8_accuracy import CALIBRATION, SEED, SIDE, copy_images, repvgg, tell
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import nbcompile
from nbcompile.exporters.to_tflite.run.interpreters import run_file
from nbcompile.training import TrainConfig, train
from nbcompile.training.data.load import load_data
from nbcompile.training.seeds import seed_everything

GOAL = 0.1
"""Points of accuracy that int8 may cost after the finish."""


@dataclass(frozen=True)
class Row:
    """One file, or one network in float.

    Attributes:
        what: it is.
        accuracy: share of all held-out images that are named rightly.
        points: 100 x (the float network before the finish - this).
        few: accuracy of TFLite Micro, and of LiteRT or PyTorch on the same images.
        sqnr: dB against its own float network, on images that did not calibrate.
    """

    what: str
    accuracy: float
    points: float
    few: dict[str, float]
    sqnr: float | None = None


class Judge:
    """Measures networks and files on the same images, given with labels."""

    def __init__(self, images: Tensor, labels: Tensor, micro: int) -> None:
        self.images, self.labels, self.micro = images, labels.numpy(), micro
        self.samples = [(one,) for one in images.permute(0, 2, 3, 1)[:, None].contiguous().numpy()]
        self.reference = 0.0

    def network(self, what: str, network: nn.Module) -> Row:
        """In PyTorch."""
        with torch.no_grad():
            chosen = torch.cat([network(part).argmax(1) for part in torch.split(self.images, 250)])
        return self._row(what, {"torch": chosen.numpy()})

    def file(self, what: str, path: Path, sqnr: float) -> Row:
        """In LiteRT on all images, in TFLite Micro on a few."""
        content, counts = path.read_bytes(), {"litert": len(self.samples), "micro": self.micro}
        kernels = {"litert": "xnnpack", "micro": "micro"}
        chosen = {
            who: np.array([int(y[0].argmax()) for y in run_file(content, self.samples[:n], kernels=kernels[who])])
            for who, n in counts.items()
        }
        return self._row(what, chosen, sqnr)

    def _row(self, what: str, chosen: dict[str, np.ndarray], sqnr: float | None = None) -> Row:
        right = {who: x == self.labels[: len(x)] for who, x in chosen.items()}
        accuracy = float(next(iter(right.values())).mean())
        self.reference = self.reference or accuracy
        few = {who: float(hits[: self.micro].mean()) for who, hits in right.items()}
        row = Row(what, accuracy, 100 * (self.reference - accuracy), few, sqnr)
        print(row, flush=True)
        return row


def main() -> None:
    made = parser("int8_finish", __doc__)
    made.add_argument("--data", type=Path, default=Path("cifar10-images.zip"), help="CIFAR-10 as .jpg: folder or zip")
    made.add_argument("--work", type=Path, default=Path("build/int8_finish"), help="images and runs; goes on there")
    made.add_argument("--images", type=int, default=20_000, help="to train on")
    made.add_argument("--epochs", type=int, default=4, help="in float")
    made.add_argument("--int8", type=int, default=2, help="epochs of the finish")
    made.add_argument("--micro", type=int, default=200, help="held-out images in TFLite Micro")
    args = made.parse_args()
    tests = 10_000
    if args.quick:
        args.images, args.epochs, args.int8, args.micro, tests = 500, 1, 1, 20, 200
    torch.set_num_threads(1)
    folder = args.work.resolve() / f"images-{args.images}"
    if not folder.is_dir():
        copy_images(args.data, folder, {"train": args.images, "test": tests, "calibration": CALIBRATION})
    began = time.perf_counter()
    rows, about = measured(folder, args)
    about["seconds"] = time.perf_counter() - began
    Console(width=120).print(table(rows))
    units = {
        "accuracy, few, simulated": "share of held-out images, first choice",
        "points": "100 x (accuracy of the float network before the finish - accuracy)",
        "sqnr": "dB, outputs in LiteRT against its own float network's, on 16 images that were not calibrated on",
        "seconds, train_seconds": "s",
    }
    args.data, args.work = args.data.name, args.work.name  # where they lie says nothing
    write(args, SEED, units, {"goal": GOAL, "about": about, "rows": [asdict(row) for row in rows]})


def measured(folder: Path, args: Any) -> tuple[list[Row], dict[str, Any]]:
    """Train, finish, and measure what there is before and after."""
    config = TrainConfig(
        data=f"imagefolder:{folder}", method="vanilla", epochs=args.epochs, int8=args.int8, batch_size=64,
        input_size=SIDE, seed=SEED, ema=0.0, keep_anchors=1,
    )  # fmt: skip
    seed_everything(SEED)
    output = args.work / f"finished-{args.images}-{args.epochs}-{args.int8}.pt"
    result = train(repvgg(), config, output, resume=True, on_event=tell)
    val = load_data(config).val
    batch = val[torch.randperm(len(val), generator=torch.Generator().manual_seed(SEED)).tolist()]
    if isinstance(batch, Exception):
        raise batch
    judge = Judge(*batch[:2], args.micro)
    before, after = (nbcompile.load(path).eval() for path in (result.run_dir / "anchor-1.pt", output))
    rows = [judge.network("float, before the finish", before)]
    path, images = args.work / "one.tflite", folder / "calibration"
    for what, options in (
        ("int8 as it is, before", {"equalize": "never", "correct_bias": "never"}),
        ("int8 by default, before", {}),
    ):
        made = nbcompile.export(before, path, batch[0][:1], calibration=images, min_sqnr=-100, **options)
        rows.append(judge.file(what, path, made.agreements[0].sqnr))
    rows.append(judge.network("float, after", after))
    made = nbcompile.export(after, path, batch[0][:1], calibration=images, min_sqnr=-100)  # it checks, no more
    rows.append(judge.file("int8, after", path, made.agreements[0].sqnr))
    return rows, {
        "train_seconds": result.seconds,
        "held_out": len(val),
        "simulated": result.simulated_accuracy,
        "epochs": [[epoch.phase, epoch.val_accuracy, epoch.lr] for epoch in result.history],
    }


def table(rows: list[Row]) -> Table:
    made = Table("what", "accuracy %", "points below float", "dB", "few: others", "few: Micro", title="Int8 finish")
    for row in rows:
        others = next(iter(row.few.values()))
        micro = f"{100 * row.few['micro']:.1f}" if "micro" in row.few else ""
        numbers = (f"{100 * row.accuracy:.2f}", f"{row.points:+.2f}", "" if row.sqnr is None else f"{row.sqnr:.1f}")
        made.add_row(row.what, *numbers, f"{100 * others:.1f}", micro)
    return made


if __name__ == "__main__":
    main()
