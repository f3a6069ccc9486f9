"""timm's over-parameterised families: ``fuse`` reaches their own deploy form, and is as precise.

Every member of RepVGG, MobileOne, RepGhost, RepViT and FastViT, with random weights of which every tensor matters.
Ours is ``nbcompile.fuse(model)``, theirs ``timm.utils.reparameterize_model(model)``, which leaves the norms that stand
outside its blocks; so theirs is compared again after they are folded into their neighbours, by our ``fuse``.
Errors are against the original in float64; those in float32 are of the same model and the same input, taken twice:
``run`` runs float32 as PyTorch does, where each network rounds every sum of every layer, in its own order; ``weights``
runs the deployed float32 weights in float64: what the deploying itself has rounded. ``sway`` is how far the original's
float64 output moves when all numbers move by one rounding: some of these networks are chaotic with random weights, and
where the error in float64 is above 1e-12, this is its measure.
"""

import statistics
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import timm
import torch
from _common import parser, write
from _networks import counts, isolated, sway
from rich.console import Console
from rich.table import Table
from timm.utils import reparameterize_model

import nbcompile
from nbcompile.core.judging.rounding import ROUNDINGS
from nbcompile.core.numerics import relative_error
from nbcompile.testing import enliven_

SEED = 0
FAMILIES = ("repvgg*", "mobileone*", "repghost*", "repvit*", "fastvit*")
LIMIT = 1e-12


@dataclass(frozen=True)
class Found:
    """One member; counts are executed operators with MACs, norms, MACs, params.

    Attributes:
        reaches: whether no count of ours is over that of theirs with norms folded.
        float64: error of ours in float64.
        sway: see the head of the file.
        own: error of the model's own float32 run.
        run, run_theirs: errors of the deployed models in float32.
        weights, weights_theirs: errors of their float32 weights.
    """

    model: str
    training: dict[str, int]
    ours: dict[str, int]
    theirs: dict[str, int]
    theirs_folded: dict[str, int]
    reaches: bool
    float64: float
    sway: float
    own: float
    run: float
    run_theirs: float
    weights: float
    weights_theirs: float

    @property
    def exact(self) -> bool:
        """In float64."""
        return self.float64 <= max(LIMIT, ROUNDINGS * self.sway)


def main() -> None:
    made = parser("families", __doc__)
    made.add_argument("--only", nargs="+", default=FAMILIES, help="globs on timm's names")
    made.add_argument("--size", type=int, default=128, help="pixels")
    args = made.parse_args()
    torch.set_num_threads(1)
    globs = ("*_a0", "*_050", "fastvit_t8") if args.quick else args.only
    names = [
        name
        for family in FAMILIES
        for name in timm.list_models(family)
        if any(fnmatchcase(name, glob) for glob in globs)
    ]
    found, console = [], Console()
    for name in names:
        found.append(isolated(measure, name, args.size, seconds=900, gigabytes=14))
        console.print(name, f"{found[-1].float64:.1e}")
    results: dict[str, Any] = {
        "members": len(found),
        "reach_the_deploy_form": sum(f.reaches for f in found),
        "exact_in_float64": sum(f.exact for f in found),
        "within_1e-12_in_float64": sum(f.float64 <= LIMIT for f in found),
        "worst_float64": max(f.float64 for f in found),
        "run_over_theirs": statistics.median(f.run / f.run_theirs for f in found),
        "weights_over_theirs": statistics.median(f.weights / f.weights_theirs for f in found),
        "weights_no_worse_than_theirs": sum(f.weights <= f.weights_theirs for f in found),
        "networks": [asdict(f) for f in found],
    }
    console.print(table(found), {key: value for key, value in results.items() if key != "networks"})
    units = {
        "training, ours, theirs, theirs_folded": "operators with MACs, norms, MACs of one sample, parameters",
        "float64, own, run*, weights*, sway": "max|a - b| / max|b| against the float64 original, no unit",
    }
    write(args, SEED, units, results)


def measure(name: str, size: int) -> Found:
    torch.manual_seed(SEED)
    torch.set_grad_enabled(False)
    model = timm.create_model(name)
    batch = torch.randn(2, 3, size, size)
    enliven_(model, batch, seed=SEED)
    x = batch[:1]
    training = counts(model, (x,))
    single, after, deployed = model(x), {}, {}
    for key, deploy in (("ours", partial(nbcompile.fuse, example_input=x)), ("theirs", reparameterize_model)):
        deployed[key] = deploy(model)
        after[key] = counts(deployed[key], (x,))
    after["folded"] = counts(nbcompile.fuse(deployed["theirs"], example_input=x), (x,))
    exact = model.double()(x.double())
    run = {key: relative_error(tiny(x), exact) for key, tiny in deployed.items()}
    weights = {key: relative_error(tiny.double()(x.double()), exact) for key, tiny in deployed.items()}
    return Found(
        name,
        training,
        after["ours"],
        after["theirs"],
        after["folded"],
        reaches=all(after["ours"][key] <= value for key, value in after["folded"].items()),
        float64=relative_error(nbcompile.fuse(model, example_input=x.double())(x.double()), exact),
        sway=sway(model, (x.double(),), exact),
        own=relative_error(single, exact),
        run=run["ours"],
        run_theirs=run["theirs"],
        weights=weights["ours"],
        weights_theirs=weights["theirs"],
    )


def table(found: list[Found]) -> Table:
    heads = ("training", "ours", "theirs", "theirs, folded", "MACs (M)", "params (M)")
    errors = ("float64", "sway", "own", "run", "run_theirs", "weights", "weights_theirs")
    made = Table("network", *heads, *errors, title="Layers + norms; relative errors")
    for row in found:
        layers = (f"{c['layers']} + {c['norms']}" for c in (row.training, row.ours, row.theirs, row.theirs_folded))
        totals = (f"{row.training[k] / 1e6:.1f} → {row.ours[k] / 1e6:.1f}" for k in ("macs", "params"))
        cells = (f"{getattr(row, key):.0e}" for key in errors)
        made.add_row(row.model, *layers, *totals, *cells, style=None if row.reaches and row.exact else "red")
    return made


if __name__ == "__main__":
    main()
