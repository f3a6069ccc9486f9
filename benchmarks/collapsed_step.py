"""One training step of the MobileNetV2-Tiny giant in its linear phase: expanded, and collapsed to one layer a site.

Time and peak memory of forward, loss, backward and SGD step over the vanilla network's, at 144 px, batch 32,
``torch.compile`` off; and how far the collapsed form's gradients are from the expanded one's in float64.
"""

import copy
import statistics
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from _common import alternate, parser, ratios, write
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile
from training_step import BATCH, SEED, SIZE, trainer

import nbcompile
from nbcompile.core.blocks import sites
from nbcompile.core.site_spec import BLOCKS
from nbcompile.testing import scramble_

FORMS = ("expanded", "collapsed", "expanded, preserve", "collapsed, preserve")


def main() -> None:
    made = parser("collapsed_step", __doc__)
    made.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = made.parse_args()
    rows = [row for threads in args.threads for row in times(threads, 3 if args.quick else 21)]
    torch.set_num_threads(1)
    memory = {name: peak(step) for name, step in steps().items()}
    errors = [gradient_error(block, preserve) for block, preserve in product(BLOCKS, (False, True))]
    show(rows, memory, errors)
    units = {
        "*_ms": "ms a step",
        "median": "ratio of neighbouring steps, with its quartiles",
        "memory": "bytes above those before the step, at the peak",
        "error": "largest over all parameters of max|difference| / max|gradient|, outer norms in eval mode",
    }
    write(args, SEED, units, {"batch": BATCH, "size": SIZE, "steps": rows, "memory": memory, "gradients": errors})


def steps() -> dict[str, Callable[[], object]]:
    torch.manual_seed(SEED)
    vanilla, example = nbcompile.zoo.mobilenetv2_tiny(), torch.randn(1, 3, SIZE, SIZE)
    found = {"vanilla": trainer(copy.deepcopy(vanilla))}
    for name in FORMS:
        giant = nbcompile.expand(vanilla, example, preserve="preserve" in name)
        found[name] = trainer(giant)
        linearise(giant)
        if "collapsed" in name:
            nbcompile.collapse_(giant)
    return found


def linearise(giant: nn.Module) -> None:
    """The slopes that PLT ends with."""
    for block in sites(giant).values():
        block.slope.fill_(1)


def times(threads: int, repeats: int) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    seconds = alternate(steps(), repeats)
    vanilla = 1e3 * statistics.median(seconds["vanilla"])
    return [
        {"threads": threads, "giant": name, "vanilla_ms": vanilla, "giant_ms": 1e3 * statistics.median(seconds[name])}
        | ratios(seconds[name], seconds["vanilla"])
        for name in FORMS
    ]


def peak(step: Callable[[], object]) -> int:
    """Bytes that one step holds at most, above what was there before it."""
    step()  # gradients and momenta are there from now on
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def gradient_error(block: str, preserve: bool) -> dict[str, Any]:
    """Every convolution a site, every norm by random running statistics, in float64."""
    torch.manual_seed(SEED)
    images, labels = torch.randn(4, 3, 48, 48, dtype=torch.float64), torch.randint(1000, (4,))
    giant = nbcompile.expand(nbcompile.zoo.mobilenetv2_tiny(), images.float(), ["*conv"], block, 2, preserve)
    giant = scramble_(giant).double().eval()
    linearise(giant)
    gradients = []
    for model in (giant, nbcompile.collapse_(copy.deepcopy(giant))):
        loss = nn.functional.cross_entropy(model(images), labels)
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    error = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*gradients, strict=True))
    return {"block": block, "preserve": preserve, "sites": len(sites(giant)), "error": error}


def show(rows: list[dict[str, Any]], memory: dict[str, int], errors: list[dict[str, Any]]) -> None:
    console = Console()
    table = Table("threads", "giant", "vanilla (ms)", "giant (ms)", "ratio", "quartiles", title="One training step")
    for row in rows:
        spread = f"{row['quartile_1']:.2f} to {row['quartile_3']:.2f}"
        numbers = (f"{row['vanilla_ms']:.0f}", f"{row['giant_ms']:.0f}", f"{row['median']:.3f}", spread)
        table.add_row(f"{row['threads']}", f"{row['giant']}", *numbers)
    console.print(table)
    table = Table("network", "peak (MiB)", "ratio", title="Memory of one step")
    for name, held in memory.items():
        table.add_row(name, f"{held / 2**20:.0f}", f"{held / memory['vanilla']:.3f}")
    console.print(table)
    table = Table("block", "preserve", "sites", "error", title="Gradients of the collapsed form, float64")
    for row in errors:
        table.add_row(f"{row['block']}", f"{row['preserve']}", f"{row['sites']}", f"{row['error']:.1e}")
    console.print(table)


if __name__ == "__main__":
    main()
