"""Why a giant's validation accuracy lags while the learning rate is high: so do its norms' statistics.

The first epochs of a run of ``nbcompile train`` at its own recipe, as ``vanilla`` and as a giant with slopes at 0.
After every third epoch the same checkpoint is measured four times: as it is, which is what a run without ``--ema``
shows; with the statistics of its norms estimated anew from 2,560 training images; with its averaged weights
(``--ema 0.99``); and both. The training accuracy beside them is that of the epoch, in train mode, where norms take the
batch's statistics.

Images: the ``train`` and ``val`` folders of a zip, each second one to train on, each fourth to measure, made smaller.
One seed: an observation of a mechanism, no comparison of methods.
"""

import argparse
import io
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from _common import parser, write
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torchvision.transforms.functional import pil_to_tensor

import nbcompile
from nbcompile.training import Epoch, Event, TrainConfig, train
from nbcompile.training.data.base import Data
from nbcompile.training.data.in_memory import tensor_data
from nbcompile.training.seeds import seed_everything

SEED = 0
RECIPE: dict[str, Any] = {
    "epochs": 30, "giant_epochs": 29, "plt_epochs": 1, "batch_size": 256, "lr": 0.2, "ema": 0.99, "seed": SEED,
    "accelerator": "cpu",
}  # fmt: skip
EVERY = 3
BATCHES = 10
"""From which statistics are estimated."""


class EnoughError(Exception):
    """The epochs that are asked for are done."""


def main() -> None:
    args = options()
    torch.set_num_threads(1)
    data = read(args.zip, args.side)
    found = {
        method: observed(method, data, EVERY if args.quick else args.epochs) for method in ("vanilla", "netbooster")
    }
    show(found)
    args.zip = Path(args.zip.name)
    write(args, SEED, {"*": "% of images named rightly, but epoch and lr", "lr": "at the epoch's end"}, found)


def options() -> argparse.Namespace:
    made = parser("giant_statistics", __doc__)
    made.add_argument("--zip", type=Path, required=True, help="with train/CLASS/*.jpg and val/CLASS/*.jpg")
    made.add_argument("--side", type=int, default=16, help="of the images, in pixels")
    made.add_argument("--epochs", type=int, default=12, help=f"of {RECIPE['epochs']}, after which a run is left")
    return made.parse_args()


def read(path: Path, side: int) -> Data:
    """The images, in memory."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[-2] for name in names})

        def part(folder: str, step: int) -> tuple[Tensor, Tensor]:
            chosen = [name for name in names if f"{folder}/" in name][::step]
            images = (Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in chosen)
            pixels = torch.stack(
                [pil_to_tensor(image.resize((side, side), Image.Resampling.BILINEAR)) for image in images]
            )
            return pixels, torch.tensor([classes.index(name.split("/")[-2]) for name in chosen])

        known = part("train", 2), part("val", 4)
    return tensor_data(path.stem, *known, tuple(classes), scale=1 / 255, size=None, mirror=True)


def network(classes: int) -> nn.Module:
    """Depthwise-separable, with plain 1×1 layers, which become the blocks: its giant takes 6 × the MACs."""

    def layer(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]

    layers, width = layer(3, 8, 3, 2), 8
    for wider, stride in ((16, 2), (32, 1), (40, 2)):
        layers += [*layer(width, width, 3, stride, width), *layer(width, wider, 1)]
        width = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def observed(method: str, data: Data, epochs: int) -> list[dict[str, float]]:
    """What each epoch's checkpoint gives, measured in four ways."""
    rows: list[dict[str, float]] = []
    own = {} if method == "netbooster" else {"giant_epochs": None, "plt_epochs": None}
    config = TrainConfig(method=method, **(RECIPE | own))
    seed_everything(SEED)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"

        def listener(event: Event) -> None:
            if isinstance(event, Epoch) and event.epoch % EVERY == 0:
                state = torch.load(run / "last.ckpt", weights_only=True)
                rows.append(measured(event, state, run / "best.ckpt", data))
                print(method, rows[-1], flush=True)
                if event.epoch == epochs:
                    raise EnoughError

        with suppress(EnoughError):
            train(network(len(data.classes)), config, Path(folder) / "trained.pt", run, on_event=listener, data=data)
    return rows


def measured(epoch: Epoch, state: dict[str, Any], described: Path, data: Data) -> dict[str, float]:
    """The four accuracies of a checkpoint; ``described`` is a file of the same network."""
    row = {"epoch": epoch.epoch, "lr": epoch.lr, "training": 100 * epoch.train_accuracy}
    for name, weights in (("live", state["model"]), ("averaged", state["average"]["model"])):
        model = nbcompile.load(described)
        model.load_state_dict(weights)
        row[name] = accuracy(model, data)
        batches = torch.arange(BATCHES * RECIPE["batch_size"]).mul(7919).remainder(len(data.train)).view(BATCHES, -1)
        update_bn((data.train[batch.tolist()][0] for batch in batches), model)  # type: ignore[index]
        row[f"{name}, statistics anew"] = accuracy(model, data)
    return row


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """Per cent of the validation images."""
    model.eval()
    right = 0
    for batch in torch.arange(len(data.val)).split(500):
        images, labels = data.val[batch.tolist()]  # type: ignore[misc]
        right += int((model(images).argmax(1) == labels).sum())
    return 100 * right / len(data.val)


def show(found: dict[str, list[dict[str, float]]]) -> None:
    table = Table("", *found["vanilla"][0])
    for method, rows in found.items():
        for row in rows:
            table.add_row(method, *(f"{value:.4g}" for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
