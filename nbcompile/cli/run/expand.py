"""What ``nbcompile expand`` does."""

import logging
from pathlib import Path
from typing import Any

from nbcompile.checkpoint import check_output, load, save
from nbcompile.cli.run.rows import cost_json, sites_json
from nbcompile.core.blocks import sites
from nbcompile.core.cost import cost
from nbcompile.core.errors import UsageError
from nbcompile.expansion import expand
from nbcompile.models import build
from nbcompile.passes import ExpandSites
from nbcompile.spec_strings import is_pretrained

log = logging.getLogger("nbcompile")


def run_expand(
    spec: str,
    output: Path,
    *,
    verify_each: bool = False,
    weights: Path | None = None,
    key: str | None = None,
    input_shape: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """``nbcompile expand``: a MODEL becomes ``giant.pt``; ``options`` are those of `nbcompile.expand`."""
    check_output(output)
    preserve = options.get("preserve", False)
    if verify_each and not preserve:
        raise UsageError("--verify-each of expand needs --preserve: without it the giant is another function")
    if key is not None and weights is None:
        raise UsageError("--key of expand goes with --weights: it says which weights of that file are meant")
    ExpandSites(**options)  # refuses what it does not know, before a network is built
    model = build(spec, input_shape).model
    if weights is not None:
        model = load(weights, model=model, key=key).train()
    original = cost(model)
    giant = expand(model, verify_each=verify_each, **options)
    if (weights is not None or is_pretrained(spec)) and not preserve:
        names = list(sites(giant))
        log.warning(
            "the trained weights of %d expanded layers are discarded (the first: '%s'); --preserve keeps them",
            len(names),
            names[0],
        )
    save(giant, output)
    return {
        "giant": str(output),
        "sites": sites_json(giant),
        "original": cost_json(original),
        "giant_cost": cost_json(cost(giant)),
    }
