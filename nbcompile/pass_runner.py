"""Run passes in order: dump the graph between them, and prove each by numbers if asked to."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import fx

from nbcompile.core.errors import PostconditionError, UsageError
from nbcompile.core.example import Inputs
from nbcompile.core.graph.nodes import render_graph
from nbcompile.core.numerics import output_tolerance, relative_error
from nbcompile.core.progress import step
from nbcompile.core.running import eval_mode, output_of
from nbcompile.passes import PASSES, Pass, PassResult

Maker = Callable[[fx.GraphModule], Pass | None]
"""Builds a pass for a graph; None where it is not to run."""

_NO_MAKERS: Mapping[str, Maker] = {}


def run_pipeline(
    pipeline: Sequence[str],
    gm: fx.GraphModule,
    known: Mapping[str, Any],
    makers: Mapping[str, Maker] = _NO_MAKERS,
    *,
    verify: Inputs | None = None,
) -> dict[str, PassResult]:
    """Build the passes of a pipeline and run them, in its order.

    Args:
        pipeline: names in `nbcompile.passes.PASSES`.
        gm: rewritten in place.
        known: what passes may ask for: each is built with those of its fields that are in here.
        makers: of passes that depend on the graph as it is when their turn comes, by their names.
        verify: as of :func:`run_passes`.

    Returns:
        What each pass did that ran, by its name.

    Raises:
        PostconditionError: naming the first pass that changed the function.
    """
    run, results = _Run(gm, verify), {}
    for name in pipeline:
        if name in makers:
            gm.recompile()  # a maker may run it
            one = makers[name](gm)
        else:
            cls = PASSES[name]
            one = cls(**{field.name: known[field.name] for field in fields(cls) if field.name in known})
        if one is not None:
            results[name] = run.apply(one)
    gm.recompile()
    return results


def run_passes(passes: Sequence[Pass], gm: fx.GraphModule, verify: Inputs | None = None) -> tuple[PassResult, ...]:
    """Apply ``passes`` to ``gm`` in order.

    Args:
        passes: what to run.
        gm: rewritten in place.
        verify: inputs on which the graph is run before and after every pass; None trusts the passes.

    Raises:
        PostconditionError: naming the first pass that changed the function.
    """
    run = _Run(gm, verify)
    results = tuple(run.apply(one) for one in passes)
    gm.recompile()
    return results


def _dump_folder() -> Path | None:
    """``NBCOMPILE_DUMP``: where the graph is written after every pass; created if it is missing.

    Raises:
        UsageError: if the folder cannot be created.
    """
    value = os.environ.get("NBCOMPILE_DUMP")
    if not value:
        return None
    folder = Path(value)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"NBCOMPILE_DUMP={value}: the folder cannot be created: {error.strerror}") from None
    return folder


class _Run:
    """Passes that are applied to one graph, one after the other; the graph has to be recompiled after the last."""

    def __init__(self, gm: fx.GraphModule, verify: Inputs | None) -> None:
        self.gm, self.verify, self.folder, self.number = gm, verify, _dump_folder(), 0
        self._dump("input")

    def apply(self, one: Pass) -> PassResult:
        with step(one.name):
            before = self._outputs()
            result = one.apply(self.gm)
            self.number += 1
            self._dump(one.name)
            if self.verify is not None:
                self._prove(one.name, before)
        return result

    def _dump(self, name: str) -> None:
        if self.folder is not None:
            (self.folder / f"{self.number:02d}-{name}.txt").write_text(render_graph(self.gm), encoding="utf-8")

    def _prove(self, name: str, before: Any) -> None:
        self.gm.recompile()
        limit = output_tolerance(before)
        error = relative_error(self._outputs(), before)
        if not error <= limit:
            raise PostconditionError(
                f"{name} changed the function: relative error {error:.2e}, at most {limit:.0e} is rounding"
            )

    def _outputs(self) -> Any:
        """In eval mode: the graph may be of a model in training, whose statistics must not move."""
        if self.verify is None:
            return None
        with eval_mode(self.gm):
            return output_of(self.gm, self.verify)
