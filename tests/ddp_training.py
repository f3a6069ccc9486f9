"""Trains a giant under DDP in two processes, then as one layer a site: ``python ddp_training.py FOLDER``.

Each leaves what it ended with in FOLDER, as RANK.pt; rank 0 also fuses. A script of its own, because a test process
full of threads must not be forked, and two that import everything anew take twice as long.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

import nbcompile
from nbcompile import PLT, zoo
from nbcompile.core.blocks import sites
from nbcompile.core.numerics import relative_error

STEPS = 4


def train(rank: int, giant: nn.Module, folder: Path) -> None:
    torch.manual_seed(rank)  # other data in each
    distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    wrapped = DistributedDataParallel(giant)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05, momentum=0.9)
    plt = PLT(wrapped, steps=STEPS)
    seen = []
    for step in range(STEPS + 2):
        if step == STEPS:
            nbcompile.collapse_(wrapped)
        loss = nn.functional.cross_entropy(wrapped(torch.randn(8, 1, 8, 8)), torch.randint(10, (8,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not plt.done:
            plt.step()
            seen.append([float(block.slope) for block in sites(giant).values()])
    result: dict[str, Any] = {"slopes": seen, "parameters": dict(giant.named_parameters())}
    if rank == 0:
        x = torch.randn(4, 1, 8, 8)
        tiny = nbcompile.fuse(wrapped)
        with torch.no_grad():
            result["error"] = relative_error(tiny(x), giant.eval()(x))
        result["keys"] = list(tiny.state_dict())
    torch.save(result, folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    arguments = (nbcompile.expand(zoo.dscnn(), torch.randn(1, 1, 8, 8)), Path(sys.argv[1]))
    start_processes(train, arguments, nprocs=2, start_method="fork")
