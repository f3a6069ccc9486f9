"""Giant to tiny is exact: the whole grid of networks, sites, blocks, ratios, sizes, and both precisions.

Every giant gets random, non-trivial norm statistics and weights, goes to slope 1 and is fused. Compared are the full
feature map before pooling (its border included) and the logits. In float32 the error is taken twice: both networks run
in float32, where the runtime's own rounding is in; and the float32 weights of both run in float64, which leaves what
``fuse`` itself rounded.
"""

import itertools
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass

import torch
from _common import PAPER, parser, write
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import nbcompile
from nbcompile.core.blocks import KINDS
from nbcompile.core.numerics import relative_error
from nbcompile.core.wrappers import copied
from nbcompile.testing import scramble_

SEED = 0
SIZES = ((49, 65), (64, 64))
NAMED = ("features.stem.conv", "*.depthwise.conv", "features.block2.project.conv", "classifier")
"""A dense 3×3, depthwise k×k of both strides, a projection, a linear layer."""
WHERE: tuple[str | Sequence[str], ...] = ("uniform:0.5", "first:4", "middle:4", "last:4", "all", NAMED)
LIMITS = {"float64": 1e-12, "float32_run": 1e-6, "float32_weights": 1e-6}


@dataclass(frozen=True)
class Case:
    """One giant. ``pad_first`` says something only where kernels are over 1, which is in ``NAMED``."""

    network: str
    where: str | Sequence[str]
    block: str
    ratio: int
    preserve: bool
    pad_first: bool


@dataclass(frozen=True)
class Found:
    """Largest relative errors over sizes, features and logits, and whether the cost is the original's."""

    float64: float
    float32_run: float
    float32_weights: float
    same_cost: bool
    same_keys: bool


def main() -> None:
    made = parser("exactness", __doc__)
    made.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    args = made.parse_args()
    cases = grid((2,) if args.quick else range(2, 9), PAPER[:2] if args.quick else PAPER)
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(track(pool.map(measure, cases, chunksize=4), "giant to tiny", total=len(cases)))
    results = {
        "giants": len(cases),
        "comparisons_each": f"{len(SIZES)} sizes × features and logits × 3",
        "same_macs_and_params_layer_by_layer": sum(f.same_cost for f in found),
        "same_keys_and_shapes": sum(f.same_keys for f in found),
        "limits": LIMITS,
        "worst": {key: worst(cases, found, key) for key in LIMITS},
        "worst_by": {
            axis: {
                str(value): {key: max(getattr(f, key) for c, f in zip(cases, found, strict=True) if at(c, axis) == value)
                             for key in LIMITS}
                for value in dict.fromkeys(at(case, axis) for case in cases)
            }
            for axis in ("network", "where", "block", "ratio", "preserve", "pad_first")
        },
    }  # fmt: skip
    Console().print(summary(results))
    units = {"float64, float32_run, float32_weights": "max|tiny - giant| / max|giant|, no unit"}
    write(args, SEED, units, results)


def grid(ratios: Sequence[int], networks: Sequence[str]) -> list[Case]:
    axes = (networks, WHERE, KINDS, ratios, (False, True), (True, False))
    return [case for values in itertools.product(*axes) if (case := Case(*values)).pad_first or case.where == NAMED]


def measure(case: Case) -> Found:
    """Expand, fuse and compare, in both precisions."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    original = getattr(nbcompile.zoo, case.network)(num_classes=10)
    example = torch.randn(1, 3, *SIZES[0])
    where = case.where if isinstance(case.where, str) else list(case.where)
    giant = nbcompile.expand(
        original, example, where, case.block, case.ratio, case.preserve, pad_first=case.pad_first
    )
    scramble_(giant, SEED)
    nbcompile.PLT(giant, steps=1).step()
    giant.eval()
    tiny = nbcompile.fuse(giant)
    double = noisy(copied(giant).double())
    double_tiny = nbcompile.fuse(double)
    widened, widened_tiny = copied(giant).double(), copied(tiny).double()
    errors: dict[str, list[float]] = {key: [] for key in LIMITS}
    for size in SIZES:
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        errors["float64"].append(relative_error(outputs(double_tiny, x), outputs(double, x)))
        errors["float32_run"].append(relative_error(outputs(tiny, x.float()), outputs(giant, x.float())))
        errors["float32_weights"].append(relative_error(outputs(widened_tiny, x), outputs(widened, x)))
    return Found(
        **{key: max(values) for key, values in errors.items()},
        same_cost=nbcompile.cost(tiny, example) == nbcompile.cost(original.eval(), example),
        same_keys=shapes(tiny) == shapes(original),
    )


@torch.no_grad()
def noisy(model: nn.Module) -> nn.Module:
    """Parameters with all 53 bits: products of float32 values are exact in float64, and would hide rounding."""
    for parameter in model.parameters():
        parameter.mul_(1 + 1e-3 * torch.randn_like(parameter)).add_(1e-3 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The full feature map and the logits."""
    features = model.get_submodule("features")(x)
    logits = model.get_submodule("classifier")(model.get_submodule("pool")(features).flatten(1))
    return features, logits


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.state_dict().items()}


def at(case: Case, axis: str) -> object:
    value = getattr(case, axis)
    return "named" if value == NAMED else value


def worst(cases: Sequence[Case], found: Sequence[Found], key: str) -> dict[str, object]:
    case, measured = max(zip(cases, found, strict=True), key=lambda pair: getattr(pair[1], key))
    return {"error": getattr(measured, key), "of": asdict(case)}


def summary(results: dict[str, object]) -> Table:
    worst_by, n = results["worst_by"], results["giants"]
    title = (
        f"{n} giants: {results['same_macs_and_params_layer_by_layer']} with the original's MACs and params layer by "
        f"layer, {results['same_keys_and_shapes']} with its keys and shapes"
    )
    table = Table("axis", "value", *LIMITS, title=title)
    for axis, rows in worst_by.items():
        for value, errors in rows.items():
            table.add_row(axis, value, *(f"{errors[key]:.1e}" for key in LIMITS))
    table.add_section()
    table.add_row("limit", "", *(f"{limit:.0e}" for limit in LIMITS.values()))
    return table


if __name__ == "__main__":
    main()
