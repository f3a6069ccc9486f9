"""Run passes in order: dump the graph between them, and prove each by numbers if asked to."""

import copy
from collections.abc import Sequence

import torch
from torch import fx

from nbcompile.core.env import dump_folder
from nbcompile.core.errors import PostconditionError
from nbcompile.core.example import Inputs
from nbcompile.core.graph import render
from nbcompile.core.numerics import relative_error, tolerance
from nbcompile.passes import Pass, PassResult


def run(passes: Sequence[Pass], gm: fx.GraphModule, verify: Inputs | None = None) -> tuple[PassResult, ...]:
    """Apply ``passes`` to ``gm`` in order.

    Args:
        passes: what to run.
        gm: rewritten in place.
        verify: inputs on which the graph is run before and after every pass; None trusts the passes.

    Raises:
        PostconditionError: naming the first pass that changed the function.
    """
    folder = dump_folder()
    if folder is not None:
        (folder / "00-input.txt").write_text(render(gm))
    results = []
    for number, one in enumerate(passes, start=1):
        before = None if verify is None else _outputs(copy.deepcopy(gm), verify)
        results.append(one(gm))
        if folder is not None:
            (folder / f"{number:02d}-{one.name}.txt").write_text(render(gm))
        if verify is not None:
            error, limit = relative_error(_outputs(gm, verify), before), tolerance(verify[0].dtype)
            if not error <= limit:
                raise PostconditionError(
                    f"{one.name} changed the function: relative error {error:.2e}, at most {limit:.0e} is rounding"
                )
    return tuple(results)


def _outputs(gm: fx.GraphModule, inputs: Inputs) -> object:
    with torch.no_grad():
        return gm(*inputs)
