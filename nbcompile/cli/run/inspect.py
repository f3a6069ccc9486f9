"""What ``nbcompile inspect`` does."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from nbcompile.cli.run.rows import cost_json, groups_json, sites_json
from nbcompile.core.copies import weightless
from nbcompile.core.cost import cost
from nbcompile.core.errors import CaptureError, PreconditionError, UsageError
from nbcompile.core.example import Inputs, Origin, origin_of
from nbcompile.core.giants import giant_cost, is_giant
from nbcompile.core.serialization.bounds import MAX_TENSORS, bounded, hollow_inputs
from nbcompile.core.serialization.stand_in import StandIn
from nbcompile.core.width.widths import widths_of
from nbcompile.expansion import candidates
from nbcompile.exporters import known_format
from nbcompile.open_network import open_network


def run_inspect(source: str, *, model: str | None, key: str | None, input_shape: str | None) -> dict[str, Any]:
    """``nbcompile inspect``: layers, sites, slopes, candidates, MACs and params."""
    path = Path(source)
    form = known_format(path)
    if form is not None and form.layers is not None:
        layers = [asdict(layer) for layer in form.read_layers(path)]
        totals = {name: sum(layer[name] for layer in layers) for name in ("macs", "params")}
        return {"source": source, "cost": totals | {"flops": 2 * totals["macs"]}, "layers": layers}
    network = open_network(source, model=model, key=key, input_shape=input_shape)
    origin = origin_of(network)
    with _without_work(network, origin) as (examined, inputs):
        costs = cost(examined, inputs)
        found = _candidates(examined, inputs)
    return {
        "source": source,
        "class": type(network).__name__,
        "inputs": [list(spec.shape) for spec in origin.inputs] if origin else [],
        "cost": cost_json(costs),
        "giant_cost": cost_json(giant_cost(examined, inputs)) if widths_of(examined) is not None else None,
        "sites": sites_json(network),
        "groups": groups_json(network),
        "candidates": found,
        "layers": [asdict(layer) for layer in costs.layers],
    }


@contextmanager
def _without_work(network: nn.Module, origin: Origin | None) -> Iterator[tuple[nn.Module, Inputs | None]]:
    """What is examined in place of ``network``, and on which inputs: a file's own graph needs no numbers.

    It was proven to run on ``meta``, where the largest layer takes no time and no memory. Code may look at numbers.
    """
    if not isinstance(network, StandIn) or origin is None:
        yield network, None
        return
    with bounded(MAX_TENSORS):
        yield weightless(network), hollow_inputs(network, origin.inputs)


def _candidates(network: nn.Module, inputs: Inputs | None) -> dict[str, Any] | None:
    if is_giant(network):
        return None
    try:
        pattern, names = candidates(network, inputs)
    except (CaptureError, PreconditionError, UsageError) as error:
        return {"pattern": None, "why": str(error)}
    return {"pattern": pattern or None, "names": list(names)}
