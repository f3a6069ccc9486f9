"""What giants in width cost: making one, a training step at its own width, and a step of NetAug.

At 144 px, batch 32, one thread, NetAug's factors:

- ``widen`` over ``expand``, of MobileNetV2-100.
- A step of the giant at its own width over that of the vanilla network.
- A NetAug step at one drawn width over the sum of a vanilla step and a step of the same wide network as plain modules;
  its peak memory over the larger of theirs and over their sum (the two backward passes follow one another).
- MACs of the widest network and the mean over 200 draws, and parameters, over the vanilla network's.
"""

import copy
import random
import statistics
from collections.abc import Callable
from typing import Any

import torch
from _common import alternate, parser, ratios, write
from collapsed_step import peak
from rich.console import Console
from rich.table import Table
from torch import nn
from training_step import BATCH, SEED, SIZE, trainer

import nbcompile
from nbcompile.core.width.slices import settled
from nbcompile.widening import at_width

NETWORKS = ("mobilenetv2_tiny", "mcunet")


def main() -> None:
    args = parser("width_step", __doc__).parse_args()
    torch.set_num_threads(1)
    repeats = 3 if args.quick else 21
    found = {
        "making": making(2 if args.quick else 5),
        "steps": {name: steps(name, repeats) for name in NETWORKS},
        "macs": {name: macs(name, 10 if args.quick else 200) for name in NETWORKS},
    }
    show(found)
    units = {
        "*_ms": "ms",
        "median": "ratio of neighbouring measurements, with its quartiles",
        "*_memory": "ratio of bytes above those before the step, at the peak",
        "macs": "over the vanilla network's",
    }
    write(args, SEED, units, found)


def making(repeats: int) -> dict[str, float]:
    torch.manual_seed(SEED)
    model, example = nbcompile.zoo.mobilenetv2_100(), torch.randn(1, 3, SIZE, SIZE)
    seconds = alternate(
        {"expand": lambda: nbcompile.expand(model, example), "widen": lambda: nbcompile.widen(model, example)}, repeats
    )
    named = {f"{name}_ms": 1e3 * statistics.median(times) for name, times in seconds.items()}
    return named | ratios(seconds["widen"], seconds["expand"])


def network(name: str) -> tuple[nn.Module, nn.Module]:
    """A network of the zoo, and its giant."""
    torch.manual_seed(SEED)
    model = getattr(nbcompile.zoo, name)()
    return model, nbcompile.widen(model, torch.randn(1, 3, SIZE, SIZE))


def plain(giant: nn.Module, seed: int) -> nn.Module:
    """The network of a drawn width with tensors of its own, as one would write it by hand."""
    with at_width(giant, "random", rng=random.Random(seed)):
        return settled(giant)


def netaug(giant: nn.Module, seed: int) -> Callable[[], None]:
    torch.manual_seed(SEED)
    images, labels = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(1000, (BATCH,))
    optimizer = torch.optim.SGD(giant.parameters(), lr=1e-3, momentum=0.9)
    giant.train()

    def step() -> None:
        nn.functional.cross_entropy(giant(images), labels).backward()
        with at_width(giant, "random", rng=random.Random(seed)):
            nn.functional.cross_entropy(giant(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def steps(name: str, repeats: int) -> dict[str, Any]:
    model, giant = network(name)
    calls: dict[str, Callable[[], object]] = {
        "vanilla": trainer(model),
        "own": trainer(copy.deepcopy(giant)),
        "wide": trainer(plain(giant, SEED)),
        "netaug": netaug(copy.deepcopy(giant), SEED),
    }
    seconds = alternate(calls, repeats)
    both = [a + b for a, b in zip(seconds["vanilla"], seconds["wide"], strict=True)]
    held = {key: peak(call) for key, call in calls.items()}
    return {
        **{f"{key}_ms": 1e3 * statistics.median(times) for key, times in seconds.items()},
        "own": ratios(seconds["own"], seconds["vanilla"]),
        "netaug": ratios(seconds["netaug"], both),
        "own_memory": held["own"] / held["vanilla"],
        "netaug_memory": held["netaug"] / max(held["vanilla"], held["wide"]),
        "netaug_memory_of_sum": held["netaug"] / (held["vanilla"] + held["wide"]),
    }


def macs(name: str, draws: int) -> dict[str, float]:
    model, giant = network(name)
    own, rng = nbcompile.cost(model, torch.zeros(1, 3, SIZE, SIZE)), random.Random(SEED)
    found = []
    for _ in range(draws):
        with at_width(giant, "random", rng=rng):
            found.append(nbcompile.cost(giant).macs / own.macs)
    with at_width(giant, "widest"):
        widest = nbcompile.cost(giant)
    return {
        "own_macs": own.macs,
        "widest": widest.macs / own.macs,
        "drawn_mean": statistics.mean(found),
        "drawn_least": min(found),
        "drawn_most": max(found),
        "params": widest.params / own.params,
    }


def show(found: dict[str, Any]) -> None:
    console = Console()
    made = found["making"]
    console.print(f"widen {made['widen_ms']:.0f} ms, expand {made['expand_ms']:.0f} ms: {made['median']:.2f}")
    table = Table("network", "own width", "NetAug", "memory, own", "memory, NetAug", "widest", "mean", "params")
    for name in NETWORKS:
        step, size = found["steps"][name], found["macs"][name]
        numbers = (step["own"]["median"], step["netaug"]["median"], step["own_memory"], step["netaug_memory"])
        sizes = (size["widest"], size["drawn_mean"], size["params"])
        table.add_row(name, *(f"{x:.3f}" for x in numbers), *(f"{x:.2f}" for x in sizes))
    console.print(table)


if __name__ == "__main__":
    main()
