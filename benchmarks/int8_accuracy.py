"""What int8 costs on real photographs: accuracy before and after, of networks trained here by the reference recipe.

Three small networks for 32-pixel images are trained on ``--images`` of CIFAR-10's training images and fused: a
MobileNetV2-like one, and two that are over-parameterised while they train, a RepVGG and a MobileOne of timm's blocks.
Each is then written as int8 in six ways: weights with a scale per channel or per tensor; left as it is, equalized, or
as ``nbcompile`` does by default (equalized and biases corrected where either raises the SQNR on calibration images
that were not calibrated on). Calibration images are training images, read from their folder as the command line does.

Compared is the share of held-out images that are named rightly: by PyTorch and by LiteRT on all of them, by all three
on a few hundred, because TFLite Micro's plain loops are slow here.

``--data`` is a folder, or a zip of one, with ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg``. The training is short: the
accuracies say how the numbers move, not how good these networks can get.
"""

import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import parser, write
from rich.console import Console
from rich.table import Table
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from torch import Tensor, nn

import nbcompile
from nbcompile.exporters.to_tflite.run.interpreters import run_file
from nbcompile.training import Epoch, Event, TrainConfig, train
from nbcompile.training.data.load import load_data
from nbcompile.training.seeds import seed_everything
from nbcompile.zoo import BlockRow, InvertedResidualNet

SEED = 0
SIDE = 32
CLASSES = 10
CALIBRATION = 250
LIMITS = {"inverted residuals": 0.5, "RepVGG": 1.0, "MobileOne": 1.0}
"""Points of accuracy that int8 may cost; of the networks with branches, with equalization."""

WEIGHTS = {"per channel": True, "per tensor": False}
WAYS = {
    "as it is": {"equalize": "never", "correct_bias": "never"},
    "equalised": {"equalize": "always", "correct_bias": "never"},
    "default": {"equalize": "auto", "correct_bias": "auto"},
}


def inverted_residuals() -> nn.Module:
    stages = [
        BlockRow(c, (t,) * n, (3,) * n, s)
        for c, t, n, s in ((16, 1, 1, 1), (24, 4, 2, 1), (48, 4, 2, 2), (96, 4, 2, 2))
    ]
    return InvertedResidualNet(16, stages, 256, num_classes=CLASSES, in_channels=3)


def repvgg() -> nn.Module:
    blocks = [ByoBlockCfg(type="rep", d=2, c=c, s=s) for c, s in ((24, 1), (48, 2), (96, 2))]
    return _byob(blocks, "rep", 24)


def mobileone() -> nn.Module:
    """Depthwise and pointwise blocks in turn, three branches each, as timm's MobileOne."""
    branches = {"num_conv_branches": 3}
    blocks = [
        ByoBlockCfg(type="one", d=1, c=c, s=s, gs=gs, br=1.0, block_kwargs=branches | kernel)
        for c_in, c_out, stride in ((32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1))
        for c, s, gs, kernel in ((c_in, stride, 1, {}), (c_out, 1, 0, {"kernel_size": 1}))
    ]
    return _byob(blocks, "one", 32)


def _byob(blocks: list[ByoBlockCfg], stem: str, channels: int) -> nn.Module:
    made: nn.Module = ByobNet(ByoModelCfg(tuple(blocks), stem_type=stem, stem_chs=channels), num_classes=CLASSES)
    return made


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "inverted residuals": inverted_residuals,
    "RepVGG": repvgg,
    "MobileOne": mobileone,
}


@dataclass(frozen=True)
class Row:
    """One network, written in one way; accuracies are shares of held-out images.

    Attributes:
        done: what was done to the network before it was quantized.
        points: what int8 costs, in LiteRT on all images.
        few: accuracies on some of the images, by who ran them.
    """

    network: str
    weights: str
    way: str
    done: str
    sqnr: float
    torch: float
    litert: float
    points: float
    few: dict[str, float]
    bytes: int
    seconds: float


def main() -> None:
    made = parser("int8_accuracy", __doc__)
    made.add_argument("--data", type=Path, default=Path("cifar10-images.zip"), help="CIFAR-10 as .jpg: folder or zip")
    made.add_argument("--work", type=Path, default=Path("build/int8_accuracy"), help="images and runs; goes on there")
    made.add_argument("--images", type=int, default=20_000, help="to train on")
    made.add_argument("--epochs", type=int, default=4)
    made.add_argument("--micro", type=int, default=200, help="held-out images in TFLite Micro")
    made.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    args = made.parse_args()
    tests = 10_000
    if args.quick:
        args.images, args.epochs, args.micro, tests = 500, 1, 50, 200
    torch.set_num_threads(1)
    folder = args.work.resolve() / f"images-{args.images}"
    if not folder.is_dir():
        copy_images(args.data, folder, {"train": args.images, "test": tests, "calibration": CALIBRATION})
    rows, networks = [], []
    for name in args.networks:
        model, images, about = trained(name, folder, args)
        networks.append(about)
        rows += list(quantized(name, model, images, folder, args))
    Console(width=140).print(table(rows))
    units = {
        "accuracy, torch, litert, few": "share of held-out images, first choice",
        "points": "100 x (torch - litert)",
        "sqnr": "dB, outputs in LiteRT against PyTorch's on 16 calibration images that were not calibrated on",
        "bytes": "B",
        "seconds, train_seconds": "s",
        "macs, params": "of the fused network",
    }
    args.data, args.work = args.data.name, args.work.name  # where they lie says nothing
    results = {"limits": LIMITS, "networks": networks, "rows": [asdict(row) for row in rows]}
    write(args, SEED, units, results)


def copy_images(source: Path, folder: Path, counts: dict[str, int]) -> None:
    """The first images of each class: of ``train`` and ``test``, and of ``train`` again to calibrate on."""
    root: Any = source if source.is_dir() else zipfile.Path(source)
    partial = folder.with_name(f"{folder.name}-partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part, count in counts.items():
        classes = sorted((root / ("train" if part == "calibration" else part)).iterdir(), key=lambda x: x.name)
        for one in classes:
            (partial / part / one.name).mkdir(parents=True)
            for image in sorted(one.iterdir(), key=lambda x: x.name)[: count // len(classes)]:
                (partial / part / one.name / image.name).write_bytes(image.read_bytes())
    partial.rename(folder)


def trained(name: str, folder: Path, args: Any) -> tuple[nn.Module, tuple[Tensor, Tensor], dict[str, Any]]:
    """The fused network, the held-out images with their labels, and what there is to say of the training."""
    config = TrainConfig(
        data=f"imagefolder:{folder}", method="vanilla", epochs=args.epochs, batch_size=64, input_size=SIDE, seed=SEED,
        ema=0.0,
    )  # fmt: skip
    seed_everything(SEED)
    output = args.work / f"{run_name(name, args)}.pt"
    result = train(NETWORKS[name](), config, output, resume=True, on_event=tell)
    val = load_data(config).val
    batch = val[torch.randperm(len(val), generator=torch.Generator().manual_seed(SEED)).tolist()]
    if isinstance(batch, Exception):
        raise batch
    fused = nbcompile.fuse(result.model, example_input=batch[0][:1])
    cost = nbcompile.cost(fused, batch[0][:1])
    about = {"network": name, "accuracy": result.accuracy, "macs": cost.macs, "params": cost.params}
    return fused, batch, about | {"train_seconds": result.seconds, "held_out": len(val)}


def run_name(name: str, args: Any) -> str:
    return f"{name.replace(' ', '_')}-{args.images}-{args.epochs}"


def tell(event: Event) -> None:
    if isinstance(event, Epoch):
        print(event, flush=True)


def quantized(name: str, model: nn.Module, images: tuple[Tensor, Tensor], folder: Path, args: Any) -> Iterator[Row]:
    x, labels = images
    with torch.no_grad():
        chosen = torch.cat([model(part).argmax(1) for part in torch.split(x, 250)])
    right = {"torch": (chosen == labels).numpy()}
    samples = [(one,) for one in x.permute(0, 2, 3, 1)[:, None].contiguous().numpy()]
    for weights, per_channel in WEIGHTS.items():
        for way, options in WAYS.items():
            started = time.perf_counter()
            result = nbcompile.export(
                model,
                args.work / f"{run_name(name, args)}.tflite",
                x[:1],
                calibration=folder / "calibration",
                per_channel=per_channel,
                dense_per_channel=per_channel,
                min_sqnr=-100,  # how bad it can get is what is asked here
                **options,
            )
            seconds = time.perf_counter() - started
            content = result.path.read_bytes()
            for who, kernels, count in (("litert", "xnnpack", len(x)), ("micro", "micro", args.micro)):
                outputs = run_file(content, samples[:count], kernels=kernels, raw=True)
                right[who] = np.array([int(y[0].argmax()) for y in outputs]) == labels[:count].numpy()
            whole = {who: float(hits.mean()) for who, hits in right.items()}
            few = {who: float(hits[: args.micro].mean()) for who, hits in right.items()}
            sqnr = result.agreements[0].sqnr
            done = min(result.tried, key=lambda trial: abs(trial.sqnr - sqnr)).how if way == "default" else way
            points = 100 * (whole["torch"] - whole["litert"])
            row = Row(
                name, weights, way, done, sqnr, whole["torch"], whole["litert"], points, few, result.bytes, seconds
            )
            print(row, flush=True)
            yield row


def table(rows: list[Row]) -> Table:
    heads = ("weights", "way", "dB", "torch", "LiteRT", "points", "few: torch", "LiteRT", "Micro")
    made = Table("network", *heads, title="Accuracy in int8 (%)")
    for row in rows:
        few = (f"{100 * row.few[who]:.1f}" for who in ("torch", "litert", "micro"))
        numbers = (f"{row.sqnr:.1f}", f"{100 * row.torch:.2f}", f"{100 * row.litert:.2f}", f"{row.points:+.2f}", *few)
        missed = row.way != "as it is" and row.points > LIMITS[row.network]
        made.add_row(row.network, row.weights, row.way, *numbers, style="red" if missed else None)
    return made


if __name__ == "__main__":
    main()
