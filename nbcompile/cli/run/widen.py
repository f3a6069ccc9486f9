"""What ``nbcompile widen`` does."""

from pathlib import Path
from typing import Any

from nbcompile.checkpoint import check_output, load, save
from nbcompile.cli.run.rows import cost_json, groups_json
from nbcompile.core.cost import cost
from nbcompile.core.errors import UsageError
from nbcompile.core.giants import giant_cost
from nbcompile.core.width.factors import check_factors
from nbcompile.models import build
from nbcompile.widening import widen


def run_widen(
    spec: str,
    output: Path,
    *,
    weights: Path | None = None,
    key: str | None = None,
    input_shape: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """``nbcompile widen``: a MODEL becomes ``giant.pt``; ``options`` are those of `nbcompile.widen`."""
    check_output(output)
    if key is not None and weights is None:
        raise UsageError("--key of widen goes with --weights: it says which weights of that file are meant")
    for name in ("factors", "inner"):
        if name in options:
            check_factors(name, options[name])
    model = build(spec, input_shape).model
    if weights is not None:
        model = load(weights, model=model, key=key).train()
    original = cost(model)
    giant = widen(model, **options)
    save(giant, output)
    return {
        "giant": str(output),
        "groups": groups_json(giant),
        "original": cost_json(original),
        "giant_cost": cost_json(giant_cost(giant)),
    }
