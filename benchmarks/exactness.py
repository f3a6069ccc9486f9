"""Giant to tiny is exact: the whole grid of networks, sites, blocks, ratios, sizes, and both precisions.

Every giant gets norms with random parameters, and statistics of real activations moved at random: fresh ones hide
mistakes, and purely random ones let the signal die out in deep networks, which hides them, too (``response`` is how
much the output says of the input). It goes to slope 1 and is fused. Compared are the full feature map before pooling,
its border included, and the logits. In float32 the error is taken twice: both networks run
in float32, where the runtime's own rounding is in; and the float32 weights of both run in float64, which leaves what
``fuse`` itself rounded.
"""

import itertools
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch
from _common import PAPER, parser, write
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import nbcompile
from nbcompile.core.copies import copied
from nbcompile.core.numerics import relative_error
from nbcompile.core.site_spec import BLOCKS
from nbcompile.testing import scramble_

SEED = 0
SIZES = ((49, 65), (64, 64))
NAMED = ("features.stem.conv", "*.depthwise.conv", "features.block2.project.conv", "classifier")
"""A dense 3×3, depthwise k×k of both strides, a projection, a linear layer."""
WHERE: tuple[str | Sequence[str], ...] = ("uniform:0.5", "first:4", "middle:4", "last:4", "all", NAMED)
ERRORS = ("float64", "float32_weights", "float32_run", "giant_rounding")
LIMITS = {"float64": 1e-12, "float32_weights": 1e-6}


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
    """Largest relative errors over sizes, features and logits; whether cost and keys are the original's.

    ``response`` is the smallest difference that two input images make, over the largest output.
    """

    float64: float
    float32_weights: float
    float32_run: float
    giant_rounding: float
    same_cost: bool
    same_keys: bool
    response: float


def main() -> None:
    made = parser("exactness", __doc__)
    made.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    made.add_argument("--ratios", type=int, nargs="+", default=list(range(2, 9)), help="hidden over input channels")
    args = made.parse_args()
    cases = grid((2,) if args.quick else args.ratios, PAPER[:2] if args.quick else PAPER)
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(track(pool.map(measure, cases, chunksize=4), "giant to tiny", total=len(cases)))
    results: dict[str, Any] = {
        "giants": len(cases),
        "comparisons_each": f"{len(SIZES)} sizes × features and logits × 4",
        "same_macs_and_params_layer_by_layer": sum(f.same_cost for f in found),
        "same_keys_and_shapes": sum(f.same_keys for f in found),
        "smallest_response": min(f.response for f in found),
        "limits": LIMITS,
        "worst": {key: worst(cases, found, key) for key in ERRORS},
        "worst_by": {
            axis: {
                str(value): worst_at(cases, found, axis, value) for value in dict.fromkeys(at(c, axis) for c in cases)
            }
            for axis in ("network", "where", "block", "ratio", "preserve", "pad_first")
        },
    }
    Console().print(summary(results))
    units = {
        "float64, float32_*": "max|tiny - giant| / max|giant|, no unit",
        "giant_rounding, smallest_response": "no unit",
    }
    write(args, SEED, units, results)


def grid(ratios: Sequence[int], networks: Sequence[str]) -> list[Case]:
    axes = (networks, WHERE, BLOCKS, ratios, (False, True), (True, False))
    return [case for values in itertools.product(*axes) if (case := Case(*values)).pad_first or case.where == NAMED]


def measure(case: Case) -> Found:
    """Expand, fuse and compare, in both precisions."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    original = getattr(nbcompile.zoo, case.network)(num_classes=10)
    example = torch.randn(1, 3, *SIZES[0])
    where = case.where if isinstance(case.where, str) else list(case.where)
    giant = nbcompile.expand(original, example, where, case.block, case.ratio, case.preserve, pad_first=case.pad_first)
    nbcompile.PLT(giant, steps=1).step()
    lively_(giant)
    tiny = nbcompile.fuse(giant)
    double = noisy(copied(giant).double())
    double_tiny = nbcompile.fuse(double)
    widened, widened_tiny = copied(giant).double(), copied(tiny).double()
    errors: dict[str, list[float]] = {key: [] for key in ERRORS}
    responses = []
    for size in SIZES:
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        exact, run = outputs(widened, x), outputs(giant, x.float())
        errors["float64"].append(relative_error(outputs(double_tiny, x), outputs(double, x)))
        errors["float32_weights"].append(relative_error(outputs(widened_tiny, x), exact))
        errors["float32_run"].append(relative_error(outputs(tiny, x.float()), run))
        errors["giant_rounding"].append(relative_error(run, exact))
        responses += [relative_error(y[:1], y[1:]) for y in exact]
    return Found(
        **{key: max(values) for key, values in errors.items()},
        same_cost=nbcompile.cost(tiny, example) == nbcompile.cost(original.eval(), example),
        same_keys=shapes(tiny) == shapes(original),
        response=min(responses),
    )


@torch.no_grad()
def lively_(giant: nn.Module) -> None:
    """Random norm parameters, and running statistics of real activations, off by up to half a deviation and more."""
    scramble_(giant, SEED)
    norms = [module for module in giant.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    giant.train()(torch.randn(8, 3, *SIZES[1]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        var.clamp_(min=0.1 * var.mean())  # a channel dead in this batch need not be so in others
        mean.add_(0.5 * var.sqrt() * torch.randn_like(mean))
        var.mul_(0.5 + 1.5 * torch.rand_like(var))
    giant.eval()


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


def worst(cases: Sequence[Case], found: Sequence[Found], key: str) -> dict[str, Any]:
    case, measured = max(zip(cases, found, strict=True), key=lambda pair: getattr(pair[1], key))
    return {"error": getattr(measured, key), "of": asdict(case)}


def worst_at(cases: Sequence[Case], found: Sequence[Found], axis: str, value: object) -> dict[str, float]:
    chosen = [measured for case, measured in zip(cases, found, strict=True) if at(case, axis) == value]
    return {key: max(getattr(measured, key) for measured in chosen) for key in ERRORS}


def summary(results: dict[str, Any]) -> Table:
    worst_by, n = results["worst_by"], results["giants"]
    title = (
        f"{n} giants: {results['same_macs_and_params_layer_by_layer']} with the original's MACs and params layer by "
        f"layer, {results['same_keys_and_shapes']} with its keys and shapes"
    )
    table = Table("axis", "value", *ERRORS, title=title)
    for axis, rows in worst_by.items():
        for value, errors in rows.items():
            table.add_row(axis, value, *(f"{errors[key]:.1e}" for key in ERRORS))
    table.add_section()
    table.add_row("limit", "", *(f"{LIMITS[key]:.0e}" if key in LIMITS else "" for key in ERRORS))
    return table


if __name__ == "__main__":
    main()
