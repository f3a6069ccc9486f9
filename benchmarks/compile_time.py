"""How long compiling takes: ``fuse``, the whole command against a bare export, and ``--help``.

The command reads a trained MobileNetV2-100 giant, fuses, verifies, exports with dynamic batch, simplifies and checks;
the bare script builds the vanilla network, loads its weights and calls ``torch.onnx.export``, with a fixed batch and,
as ours does, with a dynamic one. All run as processes, in turn, on one thread.
"""

import statistics
import sys
import tempfile
from pathlib import Path

import torch
from _common import alternate, parser, ratios, run_process, write
from rich.console import Console
from rich.table import Table

import nbcompile
from nbcompile.testing import scramble_

SEED = 0
SIZE = 160
LIMITS = {"fuse": 1.0, "command": 1.25, "help": 1.5}
BARE_EXPORT = """
import sys, torch, nbcompile.zoo
model = nbcompile.zoo.mobilenetv2_100()
model.load_state_dict(torch.load(sys.argv[1], weights_only=True))
x = torch.randn(1, 3, {size}, {size})
shapes = ({{0: torch.export.Dim("batch")}},) if sys.argv[3] == "dynamic" else None
torch.onnx.export(model.eval(), (x,), sys.argv[2], dynamo=True, dynamic_shapes=shapes, external_data=False)
"""


def main() -> None:
    args = parser("compile_time", __doc__).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    results = {"fuse": fuse_seconds(3 if args.quick else 20), **commands(2 if args.quick else 5)}
    table = Table("what", "measured", "quartiles", "limit", title="Compiling MobileNetV2-100")
    for name, row in results.items():
        spread = f"{row['quartile_1']:.3f} to {row['quartile_3']:.3f}"
        table.add_row(name, f"{row['median']:.3f}", spread, f"{LIMITS[name.split()[0]]}")
    Console().print(table)
    units = {"fuse": "s, one thread", "* over *": "ratio", "seconds, bare_seconds": "s"}
    write(args, SEED, units, {"limits": LIMITS, **results})


def fuse_seconds(repeats: int) -> dict[str, float]:
    """Of the giant in which every candidate is expanded; the first run is not counted."""
    giant = linear_giant("all")
    seconds = alternate({"fuse": lambda: nbcompile.fuse(giant)}, repeats)["fuse"]
    low, middle, high = statistics.quantiles(seconds, n=4)
    return {"median": middle, "quartile_1": low, "quartile_3": high}


def commands(repeats: int) -> dict[str, dict[str, float]]:
    """Ratios of whole processes; one round before is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        giant = linear_giant("uniform:0.5")
        nbcompile.save(giant, home / "trained.pt")
        torch.save(nbcompile.fuse(giant).state_dict(), home / "vanilla.pt")
        script = home / "bare.py"
        script.write_text(BARE_EXPORT.format(size=SIZE))
        python = sys.executable
        bare = [python, str(script), str(home / "vanilla.pt"), str(home / "bare.onnx")]
        ours = [python, "-m", "nbcompile", "fuse", str(home / "trained.pt"), "-o", str(home / "tiny.onnx")]
        export = side_by_side({"ours": ours, "fixed": [*bare, "fixed"], "dynamic": [*bare, "dynamic"]}, repeats)
        helped = side_by_side(
            {"ours": [python, "-m", "nbcompile", "--help"], "imports": [python, "-c", "import typer, rich"]},
            3 * repeats,
        )
    return {
        **compared("command over fixed-batch export", export["ours"], export["fixed"]),
        **compared("command over dynamic-batch export", export["ours"], export["dynamic"]),
        **compared("help over imports", helped["ours"], helped["imports"]),
    }


def side_by_side(commands: dict[str, list[str]], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Wall-clock and CPU seconds of processes run in turn, the order reversed every other round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for i in range(repeats + 1):
        for name in list(commands) if i % 2 == 0 else list(reversed(commands)):
            times[name].append(run_process(commands[name]))
    return {name: found[1:] for name, found in times.items()}


def compared(
    name: str, ours: list[tuple[float, float]], bare: list[tuple[float, float]]
) -> dict[str, dict[str, float]]:
    rows = {}
    for i, clock in enumerate(("wall clock", "CPU time")):
        above, below = [run[i] for run in ours], [run[i] for run in bare]
        seconds = {"seconds": statistics.median(above), "bare_seconds": statistics.median(below)}
        rows[f"{name}, {clock}"] = ratios(above, below) | seconds
    return rows


def linear_giant(where: str) -> torch.nn.Module:
    """A giant at the end of PLT, with norm statistics that are not trivial."""
    giant = nbcompile.expand(nbcompile.zoo.mobilenetv2_100(), torch.randn(1, 3, SIZE, SIZE), where=where)
    scramble_(giant, SEED)
    nbcompile.PLT(giant, steps=1).step()
    return giant.eval()


if __name__ == "__main__":
    main()
