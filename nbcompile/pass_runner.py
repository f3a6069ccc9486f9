"""Run passes in order: dump the graph between them, and prove each by numbers if asked to."""

from collections.abc import Sequence

import torch
from torch import fx

from nbcompile.core.env import dump_folder
from nbcompile.core.errors import PostconditionError
from nbcompile.core.example import Inputs, change_tensors
from nbcompile.core.graph.nodes import render_graph
from nbcompile.core.numerics import flatten, relative_error, tolerance
from nbcompile.core.running import eval_mode
from nbcompile.passes import Pass, PassResult


def run_passes(passes: Sequence[Pass], gm: fx.GraphModule, verify: Inputs | None = None) -> tuple[PassResult, ...]:
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
        (folder / "00-input.txt").write_text(render_graph(gm))
    results = []
    for number, one in enumerate(passes, start=1):
        before = None if verify is None else _outputs(gm, verify)
        results.append(one.apply(gm))
        if folder is not None:
            (folder / f"{number:02d}-{one.name}.txt").write_text(render_graph(gm))
        if verify is not None:
            gm.recompile()
            limit = max((tolerance(x.dtype) for x in flatten(before)), default=0.0)
            error = relative_error(_outputs(gm, verify), before)
            if not error <= limit:
                raise PostconditionError(
                    f"{one.name} changed the function: relative error {error:.2e}, at most {limit:.0e} is rounding"
                )
    gm.recompile()
    return tuple(results)


def _outputs(gm: fx.GraphModule, inputs: Inputs) -> object:
    """In eval mode: the graph may be of a model in training, whose statistics must not move."""
    with torch.no_grad(), eval_mode(gm):
        return gm(*change_tensors(torch.clone, inputs))
