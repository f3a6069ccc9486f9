"""Any network: ``fuse`` keeps the function, and an expanded network comes back, over torchvision and timm.

All classification networks of torchvision, the smallest of every timm family, torchvision's segmentation networks and
detectors; and small ones that are made here: 20 of Hugging Face's transformers from configurations, and four in the
manner of ultralytics' YOLO. Random weights, every tensor made to matter (``nbcompile.testing.enliven_``), batch 1, the
network's own input size (detectors: 320). Each in a process of its own, one thread, with a limit on memory and time:

1. ``fuse(model)`` against the model on the full output, in float32 and in float64.
2. ``expand(where="uniform:0.5", ratio=2)``, slopes to 1, ``fuse``: the original's MACs and params layer by layer, its
   keys and shapes, strictly loaded into it; and then it has the giant's function.

Neither may change the network, nor what it is called with: every attribute and tensor is looked at before and after.

Where an error in float32 is above 1e-5, its measure is ``own_rounding``: how far the model's own float32 run is from
its float64 run. Where one in float64 is above 1e-12, it is ``sway``: how far the model's output moves when every
number moves by one rounding. Detectors choose boxes, which rounding can turn: they are compared on all boxes in
float64, and in float32 on what their backbones and one-stage heads put out; no box is dropped for its score.
"""

import gc
import json
import time
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from _common import parser, write
from _networks import counts, isolated, said, sway
from _subjects import MADE_HERE, Subject, add_choice, called_with, doubled, earlier, network, shapes, subject, subjects
from _unchanged import unchanged
from rich.console import Console
from rich.table import Table
from torch import fx, nn

import nbcompile
from nbcompile.core.blocks import sites
from nbcompile.core.example import Inputs
from nbcompile.core.judging.rounding import ROUNDINGS
from nbcompile.core.layers import CONVOLUTIONS
from nbcompile.core.numerics import relative_error
from nbcompile.testing import enliven_

SEED = 0
WHERE, RATIO = "uniform:0.5", 2
LIMITS = {torch.float32: 1e-5, torch.float64: 1e-12}
RAW = ("backbone", "head", "rpn.head")
"""Of a detector: what it computes before it chooses boxes."""
QUICK = ("torchvision/shufflenet_v2_x0_5", "timm/repghost", "segmentation/lraspp*", "detection/ssdlite*")


@dataclass
class Found:
    """What was measured of one network; None where it did not come to that.

    Attributes:
        captured: ``whole``, ``pieces``, or empty if it could not be captured.
        before: executed operators with MACs and norms, MACs and params of the model.
        after: those of what ``fuse`` gives.
        sway: only where ``error_float64`` is above 1e-12.
        response: difference of the outputs of two inputs over the largest output: below 1e-3, little can be seen.
        expand_rounding: of the giant; only where ``expand_error`` is above 1e-5.
        same: whether layers, MACs, params, keys and shapes are the original's.
        failures: sentences.
    """

    group: str
    model: str
    input: tuple[int, ...] = ()
    captured: str = ""
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    error_float32: float | None = None
    error_float64: float | None = None
    own_rounding: float | None = None
    sway: float | None = None
    response: float | None = None
    sites: int = 0
    expand_error: float | None = None
    expand_rounding: float | None = None
    same: bool | None = None
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def main() -> None:
    made = parser("coverage", __doc__)
    add_choice(made, seconds=900)
    made.add_argument("--size", type=int, help="pixels, where the network can; else its own")
    args = made.parse_args()
    torch.set_num_threads(1)
    globs = QUICK if args.quick else args.only
    listed = map(subject, args.models) if args.models else subjects()
    chosen = [s for s in listed if any(fnmatchcase(f"{s.group}/{s.name}", glob) for glob in globs)]
    partial = args.out.with_suffix(".partial.jsonl")
    partial.parent.mkdir(parents=True, exist_ok=True)
    done = earlier(partial, args.retry) if args.resume else {}
    console = Console()
    with partial.open("a" if args.resume else "w") as lines:
        for one in chosen:
            key = (one.group, one.name)
            if key not in done:
                done[key] = attempt(one, args.size, args.seconds, args.gigabytes)
                lines.write(json.dumps(done[key]) + "\n")
                lines.flush()
                console.print(*done[key]["failures"] or ["ok"], f"({'/'.join(key)}, {done[key]['seconds']:.0f} s)")
    found = [done[s.group, s.name] for s in chosen]
    results = {"limits": {str(k): v for k, v in LIMITS.items()}, "groups": summary(found), "networks": found}
    console.print(table(found), *(f"{group}: {row}" for group, row in results["groups"].items()), sep="\n")
    units = {
        "*error*, *rounding, response, sway": "max|a - b| / max|b|, no unit",
        "before, after": "operators with MACs, norms, MACs of one sample, parameters",
        "seconds": "s, all checks of the network",
    }
    write(args, SEED, units, results)
    partial.unlink()


def attempt(one: Subject, size: int | None, seconds: float, gigabytes: float) -> dict[str, Any]:
    """The row of one network, measured in a child process."""
    started = time.perf_counter()
    try:
        row = asdict(isolated(measure, one, size, seconds=seconds, gigabytes=gigabytes))
    except RuntimeError as error:
        row = asdict(Found(one.group, one.name, failures=[str(error)]))
    return row | {"seconds": time.perf_counter() - started}


def measure(one: Subject, size: int | None) -> Found:
    """Build, fuse, expand, contract."""
    torch.manual_seed(SEED)
    torch.set_grad_enabled(False)
    found = Found(one.group, one.name)
    model, shape = network(one, size)
    found.input = (1, *shape[1:])
    sample, other, several = (called_with(one, batch, shape) for batch in (1, 1, 2))
    enliven_(model, *several, seed=SEED)
    for step in (check_fuse, check_float64, check_expand):
        try:
            step(found, model, sample, other)
        except Exception as error:
            found.failures.append(f"{step.__name__.removeprefix('check_')}: {said(error)}")
        gc.collect()
    return found


def fused(found: Found, model: nn.Module, sample: Inputs) -> nn.Module:
    """By ``fuse``, which needs no example for torchvision and timm."""
    with unchanged(model, sample):
        return nbcompile.fuse(model, example_input=sample if found.group in MADE_HERE else None)


def check_fuse(found: Found, model: nn.Module, sample: Inputs, other: Inputs) -> None:
    expected = outputs(model, sample)[0]
    found.response = relative_error(outputs(model, other)[0], expected) if found.group != "detection" else None
    found.before = counts(model, sample)
    tiny = fused(found, model, sample)
    found.captured = "whole" if isinstance(tiny, fx.GraphModule) else "pieces"
    found.after = counts(tiny, sample)
    found.error_float32 = relative_error(outputs(tiny, sample)[0], expected)


def check_float64(found: Found, model: nn.Module, sample: Inputs, other: Inputs) -> None:
    """And judges the error in float32, which needs the model's own rounding."""
    single, double = outputs(model, sample)[0], doubled(sample)
    model.double()
    try:
        exact = outputs(model, double)
        found.own_rounding = relative_error(single, exact[0])
        found.error_float64 = relative_error(outputs(fused(found, model, double), double), exact)
        if found.error_float64 > LIMITS[torch.float64]:
            found.sway = sway(model, double, exact[1])
    finally:
        model.float()
        judge(found, "fuse in float32", found.error_float32, torch.float32, found.own_rounding)
        judge(found, "fuse in float64", found.error_float64, torch.float64, found.sway)


def check_expand(found: Found, model: nn.Module, sample: Inputs, other: Inputs) -> None:
    if not any(isinstance(module, (*CONVOLUTIONS, nn.Linear)) for module in model.modules()):
        return  # GPT-2 has linear layers of its own class
    with unchanged(model, sample):
        giant = nbcompile.expand(model, sample, where=WHERE, ratio=RATIO)
    found.sites = len(sites(giant))
    nbcompile.PLT(giant, steps=1).step()
    enliven_(giant, *sample, seed=SEED + 1)
    tiny = nbcompile.fuse(giant)
    found.same = shapes(model) == shapes(tiny) and nbcompile.cost(tiny, sample) == nbcompile.cost(model, sample)
    if not found.same:
        found.failures.append("expand: what comes back has other layers, MACs, params, keys or shapes")
    model.load_state_dict(tiny.state_dict())
    del tiny
    expected = outputs(giant, sample)[0]
    found.expand_error = relative_error(outputs(model, sample)[0], expected)
    if found.expand_error > LIMITS[torch.float32]:
        giant.double()
        found.expand_rounding = relative_error(expected, outputs(giant, doubled(sample))[0])
    judge(found, "expand in float32", found.expand_error, torch.float32, found.expand_rounding)


def judge(found: Found, what: str, error: float | None, dtype: torch.dtype, rounding: float | None = None) -> None:
    """An error over the limit, and over a few times the network's own rounding, is a failure."""
    limit = max(LIMITS[dtype], ROUNDINGS * (rounding or 0.0))
    if error is not None and not error <= limit:
        found.failures.append(f"{what}: the output changed by {error:.1e}, over {limit:.0e}")


def outputs(model: nn.Module, inputs: Inputs) -> tuple[Any, Any]:
    """What float32 is compared on, and the full output; they differ for detectors."""
    seen: dict[str, Any] = {}
    modules = dict(model.named_modules()) if isinstance(inputs[0], list) else {}
    handles = [
        modules[name].register_forward_hook(lambda _, __, y, name=name: seen.update({name: y}))
        for name in RAW
        if name in modules
    ]
    y = model(*inputs)
    for handle in handles:
        handle.remove()
    return seen or y, y


def summary(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """How many of each group hold what."""
    groups: dict[str, dict[str, Any]] = {}
    for group in dict.fromkeys(row["group"] for row in found):
        rows = [row for row in found if row["group"] == group]
        groups[group] = {
            "networks": len(rows),
            "ok": sum(not row["failures"] for row in rows),
            "captured_whole": sum(row["captured"] == "whole" for row in rows),
            "captured_in_pieces": sum(row["captured"] == "pieces" for row in rows),
            "fused_within_1e-5": sum(within(row["error_float32"], torch.float32) for row in rows),
            "fused_within_1e-12_in_float64": sum(within(row["error_float64"], torch.float64) for row in rows),
            "came_back_the_same": sum(row["same"] is True for row in rows),
            "came_back_within_1e-5": sum(within(row["expand_error"], torch.float32) for row in rows),
        }
    return groups


def within(error: float | None, dtype: torch.dtype) -> bool:
    return error is not None and error <= LIMITS[dtype]


def table(found: list[dict[str, Any]]) -> Table:
    heads = ("captured", "layers + norms", "after", "float32", "own", "float64", "sites", "back", "same", "s")
    made = Table("network", *heads, title="Coverage: relative errors")
    for row in found:
        errors = {key: "" if row[key] is None else f"{row[key]:.0e}" for key in row if "error" in key or "own" in key}
        made.add_row(
            f"{row['group']}/{row['model']}",
            row["captured"] or "not",
            *(f"{row[key]['layers']} + {row[key]['norms']}" if row[key] else "" for key in ("before", "after")),
            *(errors[key] for key in ("error_float32", "own_rounding", "error_float64")),
            str(row["sites"]),
            errors["expand_error"],
            {True: "yes", False: "NO", None: ""}[row["same"]],
            f"{row['seconds']:.0f}",
            style="red" if row["failures"] else None,
        )
    return made


if __name__ == "__main__":
    main()
