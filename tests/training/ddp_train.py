"""``train`` on digits alone and in two processes over gloo: ``python ddp_train.py FOLDER WHAT``, WHAT of ``RUNS``.

Writes the losses of all steps, and what each process ends with, to FOLDER/RANK.json and FOLDER/alone.json. A script of
its own, forked from one parent that has imported everything, because a test process full of threads must not be forked.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nbcompile.core.errors import NBCompileError
from nbcompile.training import Event, Stepped, TrainConfig, train
from nbcompile.training.data.base import Data
from nbcompile.training.data.digits import load_digits

CONFIG: dict[str, Any] = {
    "data": "ddp_train:unshifted", "method": "vanilla", "epochs": 1, "batch_size": 64, "warmup_epochs": 0, "lr": 0.05,
    "accelerator": "cpu",
}  # fmt: skip
BOOSTED: dict[str, Any] = CONFIG | {"method": "netbooster", "where": "all", "ratio": 2}
MIMIC: dict[str, Any] = CONFIG | {
    "method": "mimic", "teacher": "another", "unlabeled": "ddp_train:unshifted", "unlabeled_batch": 32,
    "adversarial": 0.5,
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "plain": CONFIG,
    "accumulated": CONFIG | {"accumulate": 2},
    "linear": BOOSTED | {"giant_epochs": 0, "plt_epochs": 0, "collapse": True, "ema": 0.9},
    "replaced": BOOSTED
    | {"epochs": 4, "plain_epochs": 1, "giant_epochs": 1, "preserve": True, "contract_at": "decay", "ema": 0.9},
    "waiting": BOOSTED | {"epochs": 2, "giant_epochs": 0, "plt_epochs": 2, "rise": "cheapest-first", "plt_loss": 0.2},
    "netaug": CONFIG | {"method": "netaug", "accumulate": 2, "ema": 0.9},
    "netdistiller": CONFIG | {"method": "netdistiller", "divergence": "balanced"},
    "stored": CONFIG | {"method": "kd", "teacher": "net"},
    "branches": CONFIG | {"method": "grad-reparam", "branches": "dbb", "accumulate": 2},
    "mimic": MIMIC,
    "mimic apart": MIMIC | {"unlabeled_pass": "apart", "accumulate": 2},
    "sizes": CONFIG | {"data": "digits", "augment": "none", "epochs": 2, "sizes": (10, 8)},
    "int8": CONFIG | {"int8": 1},
    "killed": CONFIG | {"epochs": 3},
}
DIES_AT = 30
"""The training batch, counted from 1, at which the second process of ``killed`` kills itself: in the second epoch."""


def unshifted() -> Data:
    """The digits, not augmented: each process draws at random by itself."""
    data = load_digits()
    data.train.augment = False  # type: ignore[attr-defined]
    return data


class Net(nn.Sequential):
    """Without batch statistics."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 10),
        )  # fmt: skip


class Mortal(Net):
    """Kills the process that it runs in, if that is the second one."""

    seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += self.training and torch.is_grad_enabled()
        if self.seen == DIES_AT and os.environ.get("LOCAL_RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        out: Tensor = super().forward(x)
        return out


def losses(what: str, output: Path) -> dict[str, Any]:
    """The loss of every step and the accuracy, or the error."""
    found: list[float] = []

    def listener(event: Event) -> None:
        if isinstance(event, Stepped):
            found.append(event.loss)

    network, options = Mortal() if what == "killed" else Net(), RUNS[what]
    teacher = Net() if "mimic" in what or what == "stored" else None
    if what == "stored":
        options = options | {"stored_labels": str(output.with_suffix(".labels"))}
    try:
        result = train(network, TrainConfig(**options), output, on_event=listener, teacher=teacher)
    except NBCompileError as error:
        return {"error": str(error)}
    weights = sum(float(p.detach().double().sum()) for p in result.model.parameters())
    return {"losses": found, "accuracy": result.accuracy, "fused": result.fused_accuracy, "weights": weights}


def process(rank: int | None, port: int, what: str, folder: Path) -> None:
    torch.set_num_threads(1)
    name = "alone" if rank is None else str(rank)
    if rank is not None:
        os.environ.update(LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
        os.environ["MASTER_PORT"] = str(port)
    output = folder / ("alone.pt" if rank is None else "trained.pt")
    (folder / f"{name}.json").write_text(json.dumps(losses(what, output)))


def together(ranks: list[int | None], what: str, folder: Path) -> list[int | None]:
    """How the processes end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forking = multiprocessing.get_context("fork")
    processes = [forking.Process(target=process, args=(rank, port, what, folder)) for rank in ranks]
    for one in processes:
        one.start()
    for one in processes:
        one.join()
    return [one.exitcode for one in processes]


if __name__ == "__main__":
    where, run = Path(sys.argv[1]), sys.argv[2]
    print(together([None], run, where) + together([0, 1], run, where))
