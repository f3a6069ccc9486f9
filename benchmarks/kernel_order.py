"""Kernels over 1: does the padding move to a first 1×1 layer, or does the k×k layer come first? Which trains better?

Both contract exactly. With ``pad_first=True`` a ring of zeros enters the first inner norm's batch statistics (a third
of a 9-pixel map); with ``pad_first=False`` there is no ring, and the k×k layer sees the input before it is widened.
A residual network expanded at its 3×3 layers and a depthwise-separable one expanded at its depthwise layers are
trained both ways from the same weights, on the same batches and the same budget, then fused; compared is the accuracy
of what ``fuse`` returns, on held-out images, in pairs. The vanilla network with the same budget stands beside them.

Default data: scikit-learn's handwritten digits (with 300 training images, so that there is room above). With
``--data DIR``: a subset of ``DIR/train/CLASS/*`` and ``DIR/test/CLASS/*`` at 32 pixels.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _common import parser, write
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.datasets import ImageFolder
from torchvision.models.resnet import BasicBlock
from torchvision.transforms import v2

import nbcompile

SEED = 0
SIDE = 32
BATCH = 64
SITES = {"residual": "all", "depthwise": ["*.depthwise.conv"]}
"""``where`` of each network."""
VARIANTS = ("vanilla", "pad first", "kernel first")


@dataclass(frozen=True)
class Set:
    """Training and held-out images, in memory."""

    name: str
    images: Tensor
    labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor


def main() -> None:
    made = parser("kernel_order", __doc__.partition("\n")[0])
    made.add_argument("--data", type=Path, help="folder of images; default: digits")
    made.add_argument("--images", type=int, default=300, help="training images")
    made.add_argument("--epochs", type=int, default=60)
    made.add_argument("--seeds", type=int, default=6)
    made.add_argument("--ratio", type=int, default=6)
    args = made.parse_args()
    if args.quick:
        args.epochs, args.seeds = 10, 2
    torch.set_num_threads(1)
    data = folder(args.data, args.images) if args.data else digits(args.images)
    cells = [(network, preserve) for network in SITES for preserve in (False, True)]
    rows: list[dict[str, Any]] = []
    with Progress() as progress:
        task = progress.add_task("training", total=len(cells) * args.seeds)
        for network, preserve in cells:
            runs: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
            for seed in range(args.seeds):
                for variant in VARIANTS:
                    giant = build(network, variant, preserve, args.ratio, data, seed)
                    runs[variant].append(train(giant, data, args.epochs, seed, variant != "vanilla"))
                progress.advance(task)
            rows.append({"network": network, "preserve": preserve} | compared(runs))
    console = Console()
    table = Table("network", "preserve", *VARIANTS, "kernel first - pad first", title=f"Accuracy on {data.name} (%)")
    for row in rows:
        means = (f"{row['mean'][variant]:.2f}" for variant in VARIANTS)
        difference = f"{row['difference']:+.2f} ± {row['standard_error']:.2f}"
        table.add_row(str(row["network"]), str(row["preserve"]), *means, difference)
    console.print(table)
    units = {
        "accuracy, mean": "% of held-out images, fused network",
        "difference": "points, kernel first minus pad first, mean of pairs",
        "standard_error": "points, of that mean",
    }
    sizes = {"train": len(data.labels), "held_out": len(data.held_out_labels), "shape": list(data.images.shape[1:])}
    write(args, SEED, units, {"data": data.name, **sizes, "rows": rows})


def digits(count: int) -> Set:
    raw = load_digits()
    order = torch.randperm(len(raw.target), generator=torch.Generator().manual_seed(SEED))
    pixels, labels = torch.from_numpy(raw.images).float()[order, None], torch.from_numpy(raw.target)[order]
    pixels = (pixels - pixels[:count].mean()) / pixels[:count].std()
    return Set("digits", pixels[:count], labels[:count], pixels[count:], labels[count:])


def folder(root: Path, count: int) -> Set:
    """``count`` training and 2,000 held-out images, the same number of each class."""
    parts = []
    for name, wanted in (("train", count), ("test", 2000)):
        found = ImageFolder(str(root / name))
        each = wanted // len(found.classes)
        seen: dict[int, int] = {}
        chosen = []
        for path, label in found.samples:
            if seen.setdefault(label, 0) < each:
                seen[label] += 1
                chosen.append((found.loader(path), label))
        images = torch.stack([v2.functional.to_dtype(v2.functional.to_image(image), scale=True) for image, _ in chosen])
        parts += [
            F.interpolate(images, (SIDE, SIDE), antialias=True, mode="bilinear"),
            torch.tensor([k for _, k in chosen]),
        ]
    mean, std = (f(parts[0], (0, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
    return Set(root.name, (parts[0] - mean) / std, parts[1], (parts[2] - mean) / std, parts[3])


class SmallResNet(nn.Module):
    """A stem and three residual basic blocks of 16, 32 and 64 channels."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(BasicBlock(16, 16), _down(16, 32), _down(32, 64))
        self.classifier = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, channels, H, W)`` to ``(N, classes)``."""
        y: Tensor = self.classifier(self.blocks(self.stem(x)).mean((2, 3)))
        return y


def _down(inputs: int, outputs: int) -> BasicBlock:
    return BasicBlock(inputs, outputs, 2, nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2), nn.BatchNorm2d(outputs)))


def build(network: str, variant: str, preserve: bool, ratio: int, data: Set, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    channels, classes = data.images.shape[1], int(data.labels.max()) + 1
    small = SmallResNet(channels, classes) if network == "residual" else nbcompile.zoo.dscnn(classes, channels)
    if variant == "vanilla":
        return small
    return nbcompile.expand(
        small, data.images[:1], SITES[network], ratio=ratio, preserve=preserve, pad_first=variant == "pad first"
    )


def train(model: nn.Module, data: Set, epochs: int, seed: int, expanded: bool) -> float:
    """Half of the epochs as it is, a fifth with slopes rising, the rest linear; then fuse.

    Returns:
        Accuracy on the held-out images in %.
    """
    torch.manual_seed(seed)
    steps = epochs * (len(data.labels) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps, pct_start=0.1)
    plt = nbcompile.PLT(model, steps=steps // 5, start=steps // 2) if expanded else None
    model.train()
    for images, labels in batches(data, steps):
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(images), labels, label_smoothing=0.1))
        optimizer.step()
        schedule.step()
        if plt is not None:
            plt.step()
    tiny = nbcompile.fuse(model) if expanded else model.eval()
    with torch.no_grad():
        scores = torch.cat([tiny(part) for part in torch.split(data.held_out, 500)])
    return 100 * (scores.argmax(1) == data.held_out_labels).float().mean().item()


def batches(data: Set, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random batches, moved by up to an eighth of the image; colour images are mirrored, too."""
    colour, side = data.images.shape[1] == 3, data.images.shape[-1]
    reach = side // 8
    per_epoch = len(data.labels) // BATCH
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(data.labels))
        chosen = order[step % per_epoch * BATCH :][:BATCH]
        padded = F.pad(data.images[chosen], (reach,) * 4)
        top, left = torch.randint(2 * reach + 1, (2, BATCH, 1)) + torch.arange(side)
        if colour:
            left = torch.where(torch.rand(BATCH, 1) < 0.5, left, left.flip(1))
        rows = torch.arange(BATCH)[:, None, None]
        yield (
            padded.movedim(1, -1)[rows, top[:, :, None], left[:, None, :]].movedim(-1, 1).contiguous(),
            data.labels[chosen],
        )


def compared(runs: dict[str, list[float]]) -> dict[str, Any]:
    pairs = [b - a for a, b in zip(runs["pad first"], runs["kernel first"], strict=True)]
    return {
        "accuracy": runs,
        "mean": {variant: statistics.mean(values) for variant, values in runs.items()},
        "difference": statistics.mean(pairs),
        "standard_error": statistics.stdev(pairs) / len(pairs) ** 0.5,
    }


if __name__ == "__main__":
    main()
