"""One training step of the MobileNetV2-Tiny giant over one of the vanilla network: CPU time and memory.

Forward, loss, backward and SGD step at 144 px, batch 32, ``torch.compile`` off. "Modules" are the giant's modules,
called one by one, as they were until commit 4a01746 and still are for whoever watches them; "chains" is how it runs
now. All in one process, in turn.
"""

import copy
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _common import alternate, parser, ratios, write
from collapsed_step import peak
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from training_step import BATCH, SEED, SIZE, by_operator, models, profile_table, trainer

import nbcompile
from nbcompile.core.blocks import Expanded, sites

SLOPES = (0.0, 0.5, 1.0)


def main() -> None:
    made = parser("giant_step", __doc__)
    made.add_argument("--threads", type=int, default=1)
    args = made.parse_args()
    torch.set_num_threads(args.threads)
    networks = forms()
    macs = {name: nbcompile.cost(model, torch.randn(1, 3, SIZE, SIZE)).macs for name, model in models().items()}
    saved = {name: kept(model) for name, model in networks.items()}
    steps = {name: trainer_at(model, name) for name, model in networks.items()}
    memory = {name: peak(step) for name, step in steps.items()}
    seconds = alternate(steps, 3 if args.quick else 15, time.process_time)
    rows = [
        {
            "form": name,
            "ms": 1e3 * statistics.median(seconds[name]),
            **ratios(seconds[name], seconds["vanilla"]),
            "memory": memory[name] / memory["vanilla"],
            "saved": saved[name] / saved["vanilla"],
            "faults": faults(steps[name]),
        }
        for name in steps
    ]
    profiles = {name: by_operator(step) for name, step in steps.items() if "slope 0.5" in name or name == "vanilla"}
    show(rows, profiles)
    units = {
        "ms": "CPU time of a step",
        "median": "CPU time over the vanilla network's, neighbouring steps, with its quartiles",
        "memory": "bytes above those before the step, at the peak, over the vanilla network's",
        "saved": "bytes kept for backward, over the vanilla network's",
        "faults": "pages that the system gives to a step",
        "profiles": "ms a step by operator, wall clock under the profiler",
    }
    results = {"batch": BATCH, "size": SIZE, "macs": macs, "steps": rows, "profiles": profiles}
    write(args, SEED, units, results)


def forms() -> dict[str, nn.Module]:
    """The networks by name."""
    found = models()
    networks = {"vanilla": found.pop("vanilla")}
    for name, giant in found.items():
        networks[f"{name}, modules, slope 0.5"] = by_modules(copy.deepcopy(giant))
        for slope in SLOPES:
            networks[f"{name}, chains, slope {slope}"] = copy.deepcopy(giant)
    return networks


def by_modules(giant: nn.Module) -> nn.Module:
    """The giant, each of whose blocks calls its modules one by one."""
    for block in sites(giant).values():
        object.__setattr__(block, "forward", partial(one_by_one, block))
    return giant


def one_by_one(block: Expanded, x: Tensor) -> Tensor:
    """What a block did until commit 4a01746."""
    y = x
    for stage in block.stages:
        y = stage(y, block.slope)
    y = block.last(y)
    if block.last_norm is not None:
        y = block.last_norm(y)
    return y if block.original is None else block.original(x) + y


def trainer_at(model: nn.Module, name: str) -> Callable[[], object]:
    """A step at the slope that the name ends with."""
    step = trainer(model)
    for block in sites(model).values():
        block.slope.fill_(float(name.split()[-1]))
    return step


def kept(model: nn.Module) -> int:
    """Bytes of feature maps and weights that a forward pass keeps for backward, a storage once."""
    found: dict[int, int] = {}
    alive = []

    def pack(x: Tensor) -> Tensor:
        found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        alive.append(x)
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        loss = model.train()(torch.randn(BATCH, 3, SIZE, SIZE)).sum()
    return sum(found.values()) if loss.requires_grad else 0


def faults(step: Callable[[], object]) -> int:
    """Pages that one step asks the system for."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def show(rows: list[dict[str, Any]], profiles: dict[str, dict[str, float]]) -> None:
    console = Console(width=150)
    table = Table("form", "CPU ms", "over vanilla", "quartiles", "peak memory", "kept for backward", title="One step")
    for row in rows:
        spread = f"{row['quartile_1']:.2f} to {row['quartile_3']:.2f}"
        sizes = (f"{row['memory']:.2f}", f"{row['saved']:.2f}")
        table.add_row(row["form"], f"{row['ms']:.0f}", f"{row['median']:.2f}", spread, *sizes)
    console.print(table)
    console.print(profile_table(profiles))


if __name__ == "__main__":
    main()
