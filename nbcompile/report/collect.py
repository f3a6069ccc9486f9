"""What a report can read off the models by itself."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from torch import nn

from nbcompile.core.blocks import Expanded, sites
from nbcompile.core.copies import working_copy
from nbcompile.core.cost import Cost
from nbcompile.core.errors import CaptureError
from nbcompile.core.example import ExampleInput
from nbcompile.core.progress import step
from nbcompile.core.tracing.capture import capture
from nbcompile.report.data import Graph, LayerRow, ModelRow, Page, SiteRow, WidthRow
from nbcompile.report.environment import machine_line, versions
from nbcompile.report.errors_by_layer import per_layer_error
from nbcompile.report.graphs import graph_of
from nbcompile.report.labels import absorbing_norms
from nbcompile.report.opened_block import block_graph
from nbcompile.wide.giants import giant_cost
from nbcompile.wide.widths import widths_of


@step("looking for what the report says")
def report_on(
    title: str,
    command: str,
    tiny: nn.Module,
    example_input: ExampleInput,
    *,
    giant: nn.Module | None = None,
    original: nn.Module | None = None,
) -> Page:
    """A report with all that can be read off the models; the caller adds checks, files, runs and notes to it.

    Args:
        title: of the page.
        command: the command line that made it.
        tiny: the fused network.
        example_input: for costs and for the error of every layer; a few examples.
        giant: what ``tiny`` was fused from.
        original: what was expanded; its weights do not matter here.
    """
    named = {"original": original, "giant": giant, "tiny": tiny}
    known = {name: giant_cost(model, example_input) for name, model in named.items() if model is not None}
    costs = {name: spent for name, spent in known.items() if spent is not None}
    errors = per_layer_error(giant, tiny, example_input) if giant is not None else ()
    return Page(
        title=title,
        created=datetime.now().astimezone().isoformat(timespec="seconds"),
        command=command,
        versions=versions(),
        machine=machine_line(),
        models=tuple(model_row(name, spent) for name, spent in costs.items()),
        sites=site_rows(giant, tiny) if giant is not None else (),
        widths=width_rows(giant) if giant is not None else (),
        layers=layer_rows(errors, costs.get("original"), costs["tiny"]),
        graphs=_graphs(giant, tiny),
    )


def model_row(name: str, spent: Cost) -> ModelRow:
    """The row of a network whose cost is known; accuracy, file and latency are for the caller to add."""
    return ModelRow(
        name=name,
        params=spent.params,
        macs=spent.macs,
        flops=spent.flops,
        layers=sum(layer.macs > 0 for layer in spent.layers),
    )


def layer_rows(rows: Iterable[LayerRow], original: Cost | None, tiny: Cost | None) -> tuple[LayerRow, ...]:
    """``rows`` with the MACs and parameters of each layer filled in, from the costs of both networks."""
    before = {layer.name: layer for layer in original.layers} if original is not None else {}
    after = {layer.name: layer for layer in tiny.layers} if tiny is not None else {}
    filled = []
    for row in rows:
        old, new = before.get(row.name), after.get(row.name)
        if old is not None:
            row = replace(row, macs_original=old.macs, params_original=old.params)
        if new is not None:
            row = replace(row, macs_tiny=new.macs, params_tiny=new.params)
        filled.append(row)
    return tuple(filled)


def _graphs(giant: nn.Module | None, tiny: nn.Module) -> tuple[Graph, ...]:
    """The tiny network, which is the original's graph, with its sites marked; then the block of the first site."""
    names = list(sites(giant)) if giant is not None else []
    title = "The network; expanded layers are marked" if names else "The network"
    try:
        drawn = [graph_of(capture(working_copy(tiny)), names, title)]
    except CaptureError:
        drawn = []  # a network can be fused at named layers without being traceable as a whole
    if giant is not None and names:
        drawn.append(block_graph(giant, names[0]))
    return tuple(drawn)


def site_rows(giant: nn.Module, tiny: nn.Module | None = None) -> tuple[SiteRow, ...]:
    """One row per site of ``giant``, in the order of its modules.

    Args:
        giant: a network with expansion blocks; None of them gives no row.
        tiny: what it was fused into, for the parameters after.
    """
    after = dict(tiny.named_modules()) if tiny is not None else {}
    return tuple(_site_row(name, block, after.get(name)) for name, block in sites(giant).items())


def width_rows(giant: nn.Module) -> tuple[WidthRow, ...]:
    """One row per group of channels; none where ``giant`` is none in width."""
    widths = widths_of(giant)
    if widths is None:
        return ()
    return tuple(
        WidthRow(
            name=space.name,
            channels=space.channels,
            widest=space.channels + steps * (space.channels // space.units),
            inner=space.inner,
            frozen=space.frozen,
        )
        for space, steps in zip(widths.layout.spaces, widths.widest(), strict=True)
    )


def _site_row(name: str, block: Expanded, fused: nn.Module | None) -> SiteRow:
    spec = block.spec
    return SiteRow(
        name=name,
        pattern=spec.pattern,
        block=spec.block,
        ratio=spec.ratio,
        preserve=spec.preserve,
        activation=spec.activation.name,
        slope=block.slope.item(),
        shift=_shift(name, block),
        params_before=_params(block.layer()),
        params_giant=_params(block),
        params_after=None if fused is None else _params(fused),
    )


def _shift(name: str, block: Expanded) -> str:
    """Where the merged shift goes: into the layer's bias, or else into the norms that read the layer."""
    if block.spec.layer.bias:
        return "bias"
    norms = ", ".join(absorbing_norms(name, block))
    return f"running_mean of {norms}" if norms else "none"


def _params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
