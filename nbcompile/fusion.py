"""``fuse``: the giant contracted back to the original's architecture; and the deploy form that exporters lower."""

import logging
from typing import Literal

import torch
from torch import fx, nn

from nbcompile.core.blocks import sites
from nbcompile.core.capture import capture
from nbcompile.core.errors import CaptureError, PreconditionError, UsageError
from nbcompile.core.example import Inputs, inputs_for, origin_of, remember
from nbcompile.core.numerics import relative_error
from nbcompile.core.wrappers import copied, unwrap
from nbcompile.expansion import put
from nbcompile.passes import FUSE, PASSES, ContractSites, Pass
from nbcompile.pipeline import run

log = logging.getLogger("nbcompile")

Scope = Literal["sites", "all"]


def fuse(model: nn.Module, scope: Scope | None = None, *, force: bool = False, verify_each: bool = False) -> nn.Module:
    """The tiny network: ``model`` with its expansion blocks contracted, in eval mode.

    Args:
        model: a giant whose slopes are 1, or any network; it is not changed. Wrappers are seen through.
        scope: ``sites`` (the default where there are expansion blocks) gives back the original's class, keys and
            shapes, norms and all; ``all`` (the default where there are none) the deploy form: identities removed and
            batch norms folded, a GraphModule.
        force: contract blocks whose slope is not 1, too; the error this makes is measured and logged.
        verify_each: run the graph before and after every pass and compare.

    Returns:
        With ``sites``, a module of the original's class whose ``state_dict`` the original takes strictly.

    Raises:
        PreconditionError: if a slope is below 1 or a weight is not finite; the site is named.
        CaptureError: with ``all``, if the model cannot be traced.
        UsageError: if ``scope`` is neither.

    Source: NetBooster (arXiv 2306.13586) sec. 3.4.
    """
    if scope not in (None, "sites", "all"):
        raise UsageError(f"scope='{scope}' is unknown; 'sites' or 'all'")
    model = unwrap(model)
    scope = scope or ("sites" if sites(model) else "all")
    if scope == "sites" and not sites(model):
        raise PreconditionError(f"fuse: {type(model).__name__} has no expansion blocks; expand it, or use scope='all'")
    tiny = copied(model).eval()
    if sites(tiny):
        _contract(tiny, force, verify_each)
    if force and any(not block.linear for block in sites(model).values()):
        _report_error(model, tiny)
    return _deploy_graph(tiny, None, verify_each) if scope == "all" else tiny


def deploy(model: nn.Module, inputs: Inputs) -> nn.Module:
    """The deploy form of a model without expansion blocks, as exporters lower it.

    Args:
        model: copied first.
        inputs: what it is called with.

    Returns:
        A GraphModule with identities removed and norms folded; a copy in eval mode where the model cannot be traced.
    """
    ready = copied(model).eval()
    try:
        return _deploy_graph(ready, len(inputs), False)
    except CaptureError as error:
        log.warning("the norms are not folded: %s", error)
        return ready


def _contract(tree: nn.Module, force: bool, verify_each: bool) -> None:
    gm, runs = _graph(tree)
    blocks = dict(sites(gm))
    proven = verify_each and runs and not force
    run((ContractSites(force),), gm, inputs_for(tree, None, who="verify_each") if proven else None)
    for name, block in blocks.items():
        put(tree, block, gm.get_submodule(name))


def _graph(tree: nn.Module) -> tuple[fx.GraphModule, bool]:
    """The captured graph; where that cannot be had, a list of the blocks, which is all that contraction needs.

    Returns:
        The graph, and whether it can be run.
    """
    origin = origin_of(tree)
    try:
        gm = capture(tree, len(origin.inputs) if origin else None)
        if len(sites(gm)) == len(sites(tree)):
            return gm, True
    except CaptureError:
        pass
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output([graph.call_module(name, (x,)) for name in sites(tree)])
    for block in sites(tree).values():
        for key in block.spec.absorbers:
            graph.get_attr(key)
    return fx.GraphModule(tree, graph), False


def _deploy_graph(model: nn.Module, inputs: int | None, verify_each: bool) -> fx.GraphModule:
    if inputs is None and (origin := origin_of(model)):
        inputs = len(origin.inputs)
    gm = capture(model, inputs).eval()
    remember(gm, origin_of(model))
    passes: list[Pass] = [PASSES[name]() for name in FUSE if name != ContractSites.name]
    run(passes, gm, inputs_for(gm, None, who="verify_each") if verify_each else None)
    return gm


def _report_error(giant: nn.Module, tiny: nn.Module) -> None:
    if origin_of(giant) is None:
        log.warning("fuse: forced with slopes below 1; the error is not known, for want of an example input")
        return
    inputs = inputs_for(giant, None, who="fuse")
    reference = copied(giant).eval()
    with torch.no_grad():
        error = relative_error(tiny(*inputs), reference(*inputs))
    log.warning("fuse: forced with slopes below 1: the output changed by a relative error of %.3g", error)
