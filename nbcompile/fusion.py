"""``fuse``: the giant contracted back to the original's architecture, or any network brought to its deploy form."""

import logging
from typing import Literal

from torch import fx, nn

from nbcompile.contraction_proof import require_contracted
from nbcompile.core.blocks import sites
from nbcompile.core.copies import working_copy
from nbcompile.core.errors import CaptureError, PreconditionError, UsageError
from nbcompile.core.example import ExampleInput, inputs_for, origin_of
from nbcompile.core.graph.replace import put_all
from nbcompile.core.numerics import relative_error
from nbcompile.core.progress import step
from nbcompile.core.running import output_of, rehearsal, seldom_collected
from nbcompile.core.tracing.capture import capture
from nbcompile.core.tracing.observe import one_run_only
from nbcompile.core.wrappers import require_loaded, unwrap
from nbcompile.deploy.deploy_form import PassReport, compiled
from nbcompile.pass_runner import run_passes
from nbcompile.passes import ContractSites, PassResult
from nbcompile.passes.contract_sites import not_finite
from nbcompile.wide.slices import narrowed
from nbcompile.wide.widths import widths_of

log = logging.getLogger("nbcompile")

Scope = Literal["sites", "all"]


def fuse(
    model: nn.Module,
    scope: Scope | None = None,
    *,
    example_input: ExampleInput | None = None,
    force: bool = False,
    verify_each: bool = False,
    proof: bool = True,
) -> nn.Module:
    """The tiny network: ``model`` with its expansion blocks contracted, or with all merged that can be; in eval mode.

    Args:
        model: a giant whose slopes are 1, or any network; it is not changed. Wrappers are seen through.
        scope: ``sites`` (the default where there are expansion blocks) gives back the original's class, keys and
            shapes, norms and all; ``all`` (the default where there are none) the deploy form: every affine region
            merged whose merge is border-exact and lets neither MACs nor params grow.
        example_input: what the model is called with, for ``all``, which runs it to read it. None where the model
            remembers it, is one of timm or torchvision, or runs on what its first layers take; the example also tells
            the shapes that a few merges depend on (linear layers beside a BatchNorm1d, concatenations, slices).
        force: contract blocks whose slope is not 1, too; the error this makes is measured and logged.
        verify_each: run the graph before and after every pass and compare.
        proof: compare each block with its layer, and the giant with what it became, in a run on the example or on
            what the giant remembers, unless a slope is below 1; for ``all``, run the graph that was read against the
            model, at other sizes where it takes them and the graph holds for them, else on the example.

    Returns:
        With ``sites``, a module of the original's class whose ``state_dict`` the original takes strictly. With
        ``all``, a GraphModule; where the model cannot be traced, its own class, with what can be traced replaced.

    Raises:
        PreconditionError: if a slope is below 1, a weight is not finite, on the meta device or quantized; it is named.
        CaptureError: with ``all``, if no graph can say anything of the model, or it needs an example input.
        PostconditionError: if what was made of a block or of the giant is another function; the first is named.
        UsageError: if ``scope`` is neither.

    What is returned can be trained on: call ``.train()`` and make a new optimiser. In train mode it computes what the
    collapsed giant does (:func:`nbcompile.collapse_`); the expanded one's inner norms follow the batch.

    Source: NetBooster (arXiv 2306.13586) sec. 3.4.
    """
    return fused(
        model, scope, example_input=example_input, force=force, verify_each=verify_each, proof=proof
    )[0]  # fmt: skip


@seldom_collected()
@step("fusing")
def fused(
    model: nn.Module,
    scope: Scope | None = None,
    *,
    example_input: ExampleInput | None = None,
    force: bool = False,
    verify_each: bool = False,
    proof: bool = True,
) -> tuple[nn.Module, tuple[PassReport, ...]]:
    """As :func:`fuse`, and what was done."""
    if scope not in (None, "sites", "all"):
        raise UsageError(f"scope='{scope}' is unknown; 'sites' or 'all'")
    model = unwrap(model)
    require_loaded(model, "fuse")
    if widths_of(model) is not None:
        model = narrowed(model).eval()
        if key := not_finite(model):
            raise PreconditionError(f"fuse: '{key}' is not finite (NaN or infinite)")
        if scope != "all" and not sites(model):
            return model, ()
    expanded = bool(sites(model))
    scope = scope or ("sites" if expanded else "all")
    if scope == "sites" and not expanded:
        raise PreconditionError(f"fuse: {type(model).__name__} has no expansion blocks; expand it, or use scope='all'")
    known = example_input is not None or origin_of(model) is not None
    reports: tuple[PassReport, ...] = ()
    tiny = model
    if expanded:
        tiny = working_copy(model, training=False)
        reports = (PassReport("", (_contract(tiny, force, verify_each),)),)
        if any(not block.linear for block in sites(model).values()):  # it was forced
            _report_error(model, tiny)
        elif proof and known:
            require_contracted(model, tiny, inputs_for(model, example_input, who="fuse"))
        elif proof:
            log.warning("fuse: not proven by running it, for want of an example input")
    if scope == "all":
        inputs = inputs_for(tiny, example_input, who="fuse") if known else None
        tiny, more = compiled(tiny, inputs, verify_each, proof=proof)
        reports += more
    return tiny, reports


def _contract(tree: nn.Module, force: bool, verify_each: bool) -> tuple[str, PassResult]:
    with step("tracing the network"):
        gm, runs = _graph(tree)
    blocks = dict(sites(gm))
    proven = verify_each and runs and not force
    (result,) = run_passes((ContractSites(force),), gm, inputs_for(tree, None, who="verify_each") if proven else None)
    put_all(tree, {block: gm.get_submodule(name) for name, block in blocks.items()})
    return ContractSites.name, result


def _graph(tree: nn.Module) -> tuple[fx.GraphModule, bool]:
    """The captured graph; where that cannot be had, a list of the blocks, which is all that contraction needs.

    Returns:
        The graph, and whether it can be run.
    """
    try:
        gm = capture(tree, proof=False)  # it says where the blocks are, and who reads them
        if len(sites(gm)) == len(sites(tree)):
            return gm, True
    except CaptureError:
        pass
    graph = fx.Graph()
    graph.call_function(one_run_only)  # it shows no readers
    x = graph.placeholder("x")
    graph.output([graph.call_module(name, (x,)) for name in sites(tree)])
    for block in sites(tree).values():
        for key in block.spec.absorbers:
            graph.get_attr(key)
    return fx.GraphModule(tree, graph), False


def _report_error(giant: nn.Module, tiny: nn.Module) -> None:
    if origin_of(giant) is None:
        log.warning("fuse: forced with slopes below 1; the error is not known, for want of an example input")
        return
    inputs = inputs_for(giant, None, who="fuse")
    with rehearsal(giant, inputs):
        reference = output_of(working_copy(giant, training=False), inputs)
        error = relative_error(output_of(working_copy(tiny), inputs), reference)
    log.warning("fuse: forced with slopes below 1: the output changed by a relative error of %.3g", error)
