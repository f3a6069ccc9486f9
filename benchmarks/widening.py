"""Giants in width over torchvision's classifiers and the smallest network of every timm family.

Random weights, every tensor made to matter (``nbcompile.testing.enliven_``), float64, small images where the network
takes them. Each in a process of its own, one thread, with a limit on memory and time, small ones first:

1. ``widen``: at its own width the giant is the network, to the bit; at the widest and at a drawn width it is, too
   (``kept``, a relative error), but where layers mix channels.
2. All parameters of the giant move, and it runs in train mode at a drawn width: its own statistics stay.
3. ``fuse`` gives the network back: class, keys, shapes, MACs and params, and the outputs of the giant, to the bit; the
   network takes it strictly.

``share`` is how many of the channels grow that layers make: of all but those that are the network's outputs.
"""

import copy
import json
import random
import re
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from _common import ROOT, parser, write
from _networks import isolated
from _subjects import Subject, add_choice, earlier, network, shapes, subject, subjects
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import nbcompile
from nbcompile.core.numerics import relative_error
from nbcompile.testing import enliven_
from nbcompile.wide.widths import widths_of
from nbcompile.widening import at_width, widen, width_groups

SEED = 0
PIXELS = (64, 128, None, 299)
"""The first that the network takes; None is its own."""
LARGE = 20_000_000
"""Parameters from which on a network gets the narrower factors: a wide one has seven times as many otherwise."""
FACTORS = {"factors": (1, 1.8, 2.6), "inner": (1, 1.6, 2.2, 2.8)}
NARROW = {"factors": (1, 1.25), "inner": (1, 1.25)}
OUTPUT = "the network's output has it"
QUICK = ("torchvision/squeezenet1_1", "timm/repghost", "timm/deit")


@dataclass
class Found:
    """What was measured of one network.

    Attributes:
        params: of the network.
        widest: of the giant, at its widest.
        share: of the channels that could grow, in [0, 1].
        groups: of channels: how many grow, and how many keep their number.
        frozen: why, and how many channels.
        kept: relative error of the widest and a drawn width, before anything was trained.
        seconds: of ``widen``.
        failures: sentences.
    """

    group: str
    model: str
    input: tuple[int, ...] = ()
    params: int = 0
    widest: int = 0
    share: float | None = None
    groups: tuple[int, int] = (0, 0)
    frozen: dict[str, int] = field(default_factory=dict)
    kept: tuple[float, ...] = ()
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def main() -> None:
    made = parser("widening", __doc__)
    add_choice(made, seconds=120)
    args = made.parse_args()
    torch.set_num_threads(1)
    globs = QUICK if args.quick else args.only
    listed = map(subject, args.models) if args.models else (s for s in subjects() if s.group in ("torchvision", "timm"))
    chosen = [s for s in listed if any(fnmatchcase(f"{s.group}/{s.name}", glob) for glob in globs)]
    sizes = parameters()
    chosen.sort(key=lambda s: sizes.get((s.group, s.name), 0))
    partial = args.out.with_suffix(".partial.jsonl")
    partial.parent.mkdir(parents=True, exist_ok=True)
    done = earlier(partial, args.retry) if args.resume else {}
    console = Console()
    with partial.open("a" if args.resume else "w") as lines:
        for one in chosen:
            key = (one.group, one.name)
            if key not in done:
                done[key] = attempt(one, args.seconds, args.gigabytes)
                lines.write(json.dumps(done[key]) + "\n")
                lines.flush()
                row = done[key]
                console.print(*row["failures"] or ["ok"], f"({'/'.join(key)}, {row['share']}, {row['seconds']:.1f} s)")
    found = [done[s.group, s.name] for s in chosen]
    results = {"groups": summary(found), "networks": found}
    console.print(table(found), *(f"{group}: {row}" for group, row in results["groups"].items()), sep="\n")
    units = {
        "kept": "max|a - b| / max|b|, no unit",
        "share": "channels that grow over those that could",
        "seconds": "s, of widen",
        "frozen": "channels",
    }
    write(args, SEED, units, results)
    partial.unlink()


def parameters() -> dict[tuple[str, str], int]:
    """Of each network, as ``coverage.py`` counted them: small ones come first."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "coverage.json").read_text())["results"]["networks"]
    return {(row["group"], row["model"]): row["before"].get("params", 0) for row in rows}


def attempt(one: Subject, seconds: float, gigabytes: float) -> dict[str, Any]:
    """The row of one network, measured in a child process."""
    try:
        row = asdict(isolated(measure, one, seconds=seconds, gigabytes=gigabytes))
    except RuntimeError as error:
        why = "time: " if "not done" in str(error) else ""
        row = asdict(Found(one.group, one.name, failures=[f"{why}{error}"]))
    return row


def measure(one: Subject) -> Found:
    """Widen, train, fuse."""
    torch.manual_seed(SEED)
    torch.set_grad_enabled(False)
    found = Found(one.group, one.name)
    model, x = that_runs(one)
    found.input, found.params = tuple(x.shape), sum(p.numel() for p in model.parameters())
    options: dict[str, Any] = FACTORS if found.params < LARGE else NARROW
    enliven_(model, x, seed=SEED)
    wanted, tensors, cost = model(x), shapes(model), nbcompile.cost(fresh(model), x)
    started = time.process_time()
    giant = widen(model, x, **options)
    found.seconds = time.process_time() - started
    note_groups(found, giant)
    if not same(giant(x), wanted):
        found.failures.append("at its own width it is not the network")
    found.kept = tuple(kept(giant, x, width, wanted) for width in ("widest", "random"))
    train(found, giant, x)
    tiny, wanted = nbcompile.fuse(giant), giant(x)
    if type(tiny) is not type(model) or shapes(tiny) != tensors or nbcompile.cost(fresh(tiny), x) != cost:
        found.failures.append("what comes back has another class, other keys, shapes, MACs or params")
    model.load_state_dict(tiny.state_dict())
    if not same(tiny(x), wanted) or not same(fresh(model)(x), wanted):
        found.failures.append("what comes back has other outputs than the giant")
    return found


def that_runs(one: Subject) -> tuple[nn.Module, Tensor]:
    """The network and its input, with as few pixels as it takes."""
    for pixels in PIXELS:
        with suppress(Exception if pixels != PIXELS[-1] else ()):
            model, shape = network(one, pixels)
            x = torch.randn(2, *shape[1:], dtype=torch.float64)
            model.double()
            copy.deepcopy(model).train()(x)
            return model, x
    raise AssertionError("it has a size of its own")


def fresh(model: nn.Module) -> nn.Module:
    """Without what it keeps in eval mode from run to run, such as biases of attention."""
    return model.train().eval()


def note_groups(found: Found, giant: nn.Module) -> None:
    spaces = widths_of(giant).layout.spaces
    sizes = [sum(block.size for block in space.blocks) for space in spaces]
    frozen: Counter[str] = Counter()
    for space, size in zip(spaces, sizes, strict=True):
        if space.frozen and space.frozen != OUTPUT:
            frozen[re.sub(r"/\S*/site-packages/", "", space.frozen)] += size
    grow = sum(size for space, size in zip(spaces, sizes, strict=True) if not space.frozen)
    found.share = round(grow / (grow + frozen.total()), 4)
    found.groups = (sum(not g["frozen"] for g in width_groups(giant).values()), sum(bool(s.frozen) for s in spaces))
    found.frozen = dict(frozen.most_common(5))
    found.widest = sum(p.numel() for p in giant.parameters())


def kept(giant: nn.Module, x: Tensor, width: str, wanted: Any) -> float:
    with at_width(giant, width, rng=random.Random(SEED)):
        return relative_error(giant(x), wanted)


def train(found: Found, giant: nn.Module, x: Tensor) -> None:
    """As a step would: everything moves, and the wide statistics do."""
    for p in giant.parameters():
        p.mul_(0.99).add_(0.001)
    own = {name: value.clone() for name, value in giant.named_buffers()}
    own = {name: value for name, value in own.items() if "wide_" not in name and value.is_floating_point()}
    giant.train()
    with at_width(giant, "random", rng=random.Random(SEED)):
        giant(x)
    giant.eval()
    wide = {name.replace("wide_", "") for name, _ in giant.named_buffers() if "wide_" in name}
    if not all(torch.equal(giant.get_buffer(name), own[name]) for name in wide):
        found.failures.append("its own statistics changed at another width")


def same(a: Any, b: Any) -> bool:
    """To the bit."""
    return relative_error(a, b) == 0


def summary(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for group in dict.fromkeys(row["group"] for row in found):
        rows = [row for row in found if row["group"] == group]
        shares = sorted(row["share"] for row in rows if row["share"] is not None)
        groups[group] = {
            "networks": len(rows),
            "ok": sum(not row["failures"] for row in rows),
            "share at least 0.9": sum(share >= 0.9 for share in shares),
            "median share": shares[len(shares) // 2] if shares else None,
            "median seconds": sorted(row["seconds"] for row in rows)[len(rows) // 2],
        }
    return groups


def table(found: list[dict[str, Any]]) -> Table:
    made = Table("network", "pixels", "params", "share", "grow", "keep", "kept", "s", title="Giants in width")
    for row in found:
        made.add_row(
            f"{row['group']}/{row['model']}",
            str(row["input"][-1] if row["input"] else ""),
            f"{row['params']:,}",
            "" if row["share"] is None else f"{row['share']:.2f}",
            *map(str, row["groups"]),
            " ".join(f"{error:.0e}" for error in row["kept"]),
            f"{row['seconds']:.1f}",
            style="red" if row["failures"] else None,
        )
    return made


if __name__ == "__main__":
    main()
