"""The whole story on real data, in a few minutes on two cores: what ``make demo`` runs.

Trains a depthwise-separable network on scikit-learn's handwritten digits, plainly and as a giant (the same total of
epochs), fuses the giant, exports it to ONNX and to int8 for a microcontroller, verifies every step and writes a report.
The numbers are what they are.
"""

import argparse
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits

import nbcompile
from nbcompile.exporters.to_tflite.run.interpreters import run_file
from nbcompile.models import build
from nbcompile.report import data as page
from nbcompile.report.collect import report_on
from nbcompile.report.html import write
from nbcompile.training.data.load import load_data
from nbcompile.training.loop import train
from nbcompile.training.options.config import TrainConfig
from nbcompile.training.outputs.progress import Display
from nbcompile.training.outputs.records import TrainResult

MODEL = "nbcompile:dscnn?num_classes=10&in_channels=1"
console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write, made if missing")
    parser.add_argument("--epochs", type=int, default=60, help="total epochs of each run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    vanilla = fit("vanilla", options)
    giant = fit("netbooster", options)
    onnx, plain = options.out / "tiny.onnx", options.out / "vanilla.onnx"
    tflite, images = options.out / "tiny.tflite", calibration_images(options.out / "images")
    command = f"nbcompile fuse {giant.output} -o {onnx} -o {options.out / 'tiny.pt'}"
    shell(command)
    device = options.out / "device.html"
    shell(f"nbcompile fuse {giant.output} -o {tflite} --calibration {images} --target mcu --report {device}")
    shell(f"nbcompile fuse {vanilla.output} -o {plain}")
    shell(f"nbcompile verify {onnx} --against '{MODEL}'")
    shell(f"nbcompile verify {onnx} --against {giant.output}")

    report = options.out / "report.html"
    write(make_report(command, vanilla, giant, onnx, plain, options.epochs), report)
    console.print(f"\nDone in {time.monotonic() - started:.0f} s. Accuracy on 360 held-out digits, one seed:")
    console.print(f"  trained plainly            {vanilla.accuracy:.2%}  ({vanilla.output})")
    console.print(f"  expanded, trained, fused   {accuracy(onnx):.2%}  ({onnx}, in ONNX Runtime)")
    console.print(f"                             for {giant.cost.over_plain:.2f} × the training compute")
    console.print(f"  the same in int8           {in_int8(tflite, 'xnnpack'):.2%}  ({tflite}, in LiteRT)")
    console.print(f"                             {in_int8(tflite, 'micro'):.2%}  (in TFLite Micro; its C++ beside it)")
    console.print(f"  everything else            {report} and {device} (open them in a browser)")


def fit(method: str, options: argparse.Namespace) -> TrainResult:
    """Train by the reference recipe; ``preserve`` keeps the original layers beside the blocks."""
    config = TrainConfig(data="digits", method=method, epochs=options.epochs, seed=options.seed, preserve=True)
    console.print(f"\n[bold]{method}[/]: {options.epochs} epochs on digits")
    with Display() as display:
        return train(build(MODEL).model, config, options.out / f"{method}.pt", on_event=display)


def shell(command: str) -> None:
    """Run a command line as a user would, and show it."""
    console.print(f"\n$ {command}", style="bold", highlight=False, soft_wrap=True)
    words = shlex.split(command)
    subprocess.run([sys.executable, "-m", *words], check=True)


def make_report(
    command: str, vanilla: TrainResult, giant: TrainResult, onnx: Path, plain: Path, epochs: int
) -> page.Page:
    """Everything the page shows."""
    trained = nbcompile.load(giant.output)
    tiny = nbcompile.fuse(trained)
    images = load_data(TrainConfig(data="digits")).val[list(range(4))][0]
    report = report_on(
        "NetBooster on handwritten digits",
        command,
        tiny,
        images,
        giant=trained,
        original=nbcompile.load(vanilla.output),
    )
    reached = {"original": vanilla.accuracy, "giant": giant.accuracy, "tiny": giant.fused_accuracy}
    rows = [replace(row, accuracy=reached[row.name]) for row in report.models]
    file_row = page.ModelRow(
        name="tiny.onnx", accuracy=accuracy(onnx), bytes=onnx.stat().st_size, latency=latency_ratio(onnx, plain)
    )
    checked = nbcompile.verify(trained, onnx)
    return replace(
        report,
        models=(*(replace(row, latency=1.0 if row.name == "original" else None) for row in rows), file_row),
        runs=tuple(
            page.TrainingRun(label=label, history=tuple(epoch.to_json() for epoch in run.history))
            for label, run in (("vanilla", vanilla), ("NetBooster", giant))
        ),
        checks=tuple(
            page.CheckRow(
                name=c.name, passed=c.passed, measured=c.detail if c.limit is None else c.value, limit=c.limit
            )
            for c in checked.checks
        ),
        files=tuple(
            page.FileRow(path=str(path), what=what, bytes=path.stat().st_size)
            for path, what in (
                (onnx, "the fused network"),
                (plain, "the vanilla network"),
                (giant.output, "the trained giant"),
                (vanilla.output, "the vanilla network's weights"),
            )
        ),
        notes=(
            f"One seed, {epochs} epochs in all for either run. One held-out digit is 0.28 points: differences of a few "
            "digits are noise, and this data set is nearly solved by the plain network.",
            "The recipe's learning rate, batch size and weight decay were tuned for the vanilla run, on these digits.",
        ),
    )


def accuracy(path: Path) -> float:
    """Share of the held-out digits that the file names rightly, in ONNX Runtime."""
    held_out = load_data(TrainConfig(data="digits")).val
    images, labels = held_out[list(range(len(held_out)))]
    (logits,) = session(path).run(None, {"input": images.numpy()})
    return float((np.asarray(logits).argmax(1) == labels.numpy()).mean())


def calibration_images(folder: Path, count: int = 200) -> Path:
    """Images of the training set, as files: what a user would have."""
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(load_digits().images[:count]):
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{i:03}.png")  # 16 is white, as in training
    return folder


def in_int8(path: Path, kernels: str) -> float:
    """Share of the held-out digits that the file names rightly, in an interpreter of devices."""
    held_out = load_data(TrainConfig(data="digits")).val
    images, labels = held_out[list(range(len(held_out)))]
    samples = [(x.movedim(0, -1)[None].contiguous().numpy(),) for x in images]
    logits = [y for (y,) in run_file(path.read_bytes(), samples, kernels=kernels)]
    return float((np.concatenate(logits).argmax(1) == labels.numpy()).mean())


def latency_ratio(path: Path, baseline: Path, repeats: int = 2000) -> float:
    """Median time of one image over that of ``baseline``, measured in turns, one thread."""
    x = {"input": np.zeros((1, 1, 8, 8), dtype=np.float32)}
    sessions = [session(path), session(baseline)]
    times: list[list[float]] = [[], []]
    for _ in range(repeats):
        for one, found in zip(sessions, times, strict=True):
            begun = time.perf_counter()
            one.run(None, x)
            found.append(time.perf_counter() - begun)
    return statistics.median(times[0]) / statistics.median(times[1])


def session(path: Path) -> onnxruntime.InferenceSession:
    """A session of one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
