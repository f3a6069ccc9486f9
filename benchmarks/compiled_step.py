"""One training step with ``torch.compile`` and channels-last, on a CPU, or on a GPU in bfloat16.

The MobileNetV2-Tiny giant, and its linear phase in weight space (collapsed), over the vanilla network, at 144 px. The
paper prints 1.325 for the giant's latency, on GPUs.
"""

import copy
import platform
import statistics
from collections.abc import Callable

import torch
from _common import alternate, parser, ratios, write
from collapsed_step import linearise
from rich.console import Console
from rich.table import Table
from training_step import BATCH, SEED, SIZE, trainer

import nbcompile

FORMS = ("giant", "giant, preserve", "collapsed", "collapsed, preserve")


def main() -> None:
    made = parser("compiled_step", __doc__)
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--batch", type=int, default=BATCH, help="images a step")
    made.add_argument("--threads", type=int, default=1)
    args = made.parse_args()
    torch.set_num_threads(args.threads)
    seconds = alternate(steps(args.device, args.batch), 3 if args.quick else 21)
    vanilla = statistics.median(seconds["vanilla"])
    rows = [
        {"form": form, "ms": 1e3 * statistics.median(seconds[form])} | ratios(seconds[form], seconds["vanilla"])
        for form in FORMS
    ]
    title = f"One compiled training step on {args.device}; vanilla {1e3 * vanilla:.1f} ms"
    table = Table("form", "ms", "over vanilla", "quartiles", title=title)
    for row in rows:
        spread = f"{row['quartile_1']:.2f} to {row['quartile_3']:.2f}"
        table.add_row(row["form"], f"{row['ms']:.1f}", f"{row['median']:.2f}", spread)
    Console().print(table)
    where = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    units = {"ms": "ms a step", "median": "ratio of neighbouring steps, with its quartiles"}
    write(args, SEED, units, {"device": where, "size": SIZE, "vanilla_ms": 1e3 * vanilla, "steps": rows})


def steps(device: str, batch: int) -> dict[str, Callable[[], object]]:
    torch.manual_seed(SEED)
    vanilla, example = nbcompile.zoo.mobilenetv2_tiny(), torch.randn(1, 3, SIZE, SIZE)
    found = {"vanilla": trainer(copy.deepcopy(vanilla), device, batch, fast=True)}
    for form in FORMS:
        giant = nbcompile.expand(vanilla, example, preserve="preserve" in form)
        if "collapsed" in form:
            linearise(giant)
            nbcompile.collapse_(giant)
        found[form] = trainer(giant, device, batch, fast=True)
    return found


if __name__ == "__main__":
    main()
