"""Two processes over gloo train a detector: ``python ddp_detection.py FOLDER VOC``; see ``ddp_train.py``."""

import json
import multiprocessing
import os
import socket
import sys
from pathlib import Path

import torch

from nbcompile.training import TrainConfig, train
from tests.boxes import Tower


def process(rank: int, port: int, folder: Path, voc: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    torch.manual_seed(0)
    config = TrainConfig(data=f"voc:{voc}", input_size=64, epochs=2, batch_size=4, method="vanilla", accelerator="cpu")
    result = train(Tower(), config, folder / "trained.pt")
    weights = sum(float(p.detach().double().sum()) for p in result.model.parameters())
    (folder / f"{rank}.json").write_text(json.dumps({"accuracy": result.accuracy, "weights": weights}))


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    forking = multiprocessing.get_context("fork")
    both = [forking.Process(target=process, args=(rank, number, Path(sys.argv[1]), sys.argv[2])) for rank in (0, 1)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    sys.exit(any(one.exitcode for one in both))
