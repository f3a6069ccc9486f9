"""``expand``: the user's network with expansion blocks in it, of the user's own class."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial

import torch
from torch import Tensor, fx, nn

from nbcompile.core.blocks import Expanded, sites
from nbcompile.core.capture import capture
from nbcompile.core.description import describe
from nbcompile.core.errors import CaptureError, PreconditionError
from nbcompile.core.example import ExampleInput, Inputs, Origin, inputs_for, origin_of, remember, specs
from nbcompile.core.graph import aliases, calls
from nbcompile.core.layers import CONVOLUTIONS
from nbcompile.core.observe import observe
from nbcompile.core.wrappers import copied, unwrap
from nbcompile.passes import ExpandSites
from nbcompile.passes.select import named
from nbcompile.pipeline import run

log = logging.getLogger("nbcompile")


def expand(
    model: nn.Module,
    example_input: ExampleInput | None = None,
    where: str | Sequence[str] = "uniform:0.5",
    block: str = "inverted-residual",
    ratio: int = 6,
    preserve: bool = False,
    *,
    pad_first: bool = False,
    verify_each: bool = False,
) -> nn.Module:
    """A giant: a copy of ``model`` in which some layers are expansion blocks.

    Args:
        model: any module; it is not changed. Wrappers (DDP, ``torch.compile``) are seen through.
        example_input: what ``forward`` takes: a tensor, or several; the first dimension is the batch. May be left out
            where the model remembers it.
        where: which candidates: ``uniform:F``, ``first:N``, ``middle:N``, ``last:N``, ``all``; or a list of names
            and globs, which may name any convolution or linear layer.
        block: ``inverted-residual``, ``bottleneck`` or ``basic``; a linear layer always becomes two.
        ratio: hidden width over the layer's *input* channels, >= 1.
        preserve: keep each original layer as a parallel branch: outputs are the model's own at first, so a *trained*
            network can be expanded.
        pad_first: where the layer's kernel is over 1: move its padding to a first 1×1 layer, instead of putting the
            k×k layer first. Both contract exactly; the zero ring of the former disturbs the inner norm's batch
            statistics, and trained worse (``benchmarks/kernel_order.py``).
        verify_each: with ``preserve``, run the graph before and after the pass and compare.

    Returns:
        The giant: same class, same mode, same keys outside the sites.

    Raises:
        CaptureError: if the model cannot be traced and ``where`` names no layers.
        PreconditionError: if a layer cannot be expanded; it is named.
        UsageError: if the options do not fit; candidates are listed.

    Source: NetBooster (arXiv 2306.13586) sec. 3.3 and 4.1; ``preserve`` and the borders are ours.
    """
    model = unwrap(model)
    inputs = inputs_for(model, example_input, who="expand")
    expander = ExpandSites(where, block, ratio, preserve, pad_first)
    giant = copied(model)
    gm = _graph(giant, inputs, where)
    _require_called(giant, gm, named(where) or [])
    layers = dict(gm.named_modules())
    (result,) = run((expander,), gm, inputs if verify_each and preserve else None)
    for name in result.rewritten:
        put(giant, layers[name], gm.get_submodule(name))
    _probe(giant, model, inputs, {name: len(calls(gm)[gm.get_submodule(name)]) for name in result.rewritten})
    known = origin_of(model)
    origin = Origin(specs(inputs), known.model if known else None, known.preprocessing if known else {})
    remember(giant, origin)
    next(iter(sites(giant).values())).attach_record({"model": describe(giant, gm, origin)})
    _tell(giant)
    return giant


def put(tree: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace ``old`` by ``new`` in ``tree``, under every name it has there."""
    for name in aliases(tree, old):
        tree.set_submodule(name, new)


def _graph(giant: nn.Module, inputs: Inputs, where: str | Sequence[str]) -> fx.GraphModule:
    try:
        return capture(giant, len(inputs))
    except CaptureError:
        if named(where) is None:
            raise
        return observe(giant, inputs)


def _require_called(giant: nn.Module, gm: fx.GraphModule, patterns: Sequence[str]) -> None:
    """Say why a layer that the model has, and ``where`` names, is not in the graph."""
    nodes = calls(gm)
    layers = {n: m for n, m in giant.named_modules(remove_duplicate=False) if isinstance(m, (*CONVOLUTIONS, nn.Linear))}
    for pattern in patterns:
        found = [name for name in layers if fnmatchcase(name, pattern)]
        if not found or any(layers[name] in nodes for name in found):
            continue
        parts = found[0].split(".")
        parents = {path: giant.get_submodule(path) for i in range(1, len(parts)) if (path := ".".join(parts[:i]))}
        why = next(
            (
                f"it is inside '{p}' ({type(m).__name__}), which reads its weight directly"
                for p, m in parents.items()
                if m in nodes
            ),
            "it is not reached by the example input in eval mode",
        )
        raise PreconditionError(f"expand: '{found[0]}' cannot be expanded: {why}; name other layers with where=[...]")


def _probe(giant: nn.Module, model: nn.Module, inputs: Inputs, wanted: dict[str, int]) -> None:
    """Run a copy in eval and train mode: every block must be called as often as its layer was, and none for a weight.

    Args:
        giant: what ``expand`` made.
        model: what it was made from: where that does not run either, nothing can be learnt.
        inputs: of the user.
        wanted: how often the eval graph calls each site.
    """
    for training in (False, True):
        probe = copied(giant).train(training)
        reached: Counter[str] = Counter()
        batch = _twice(inputs) if training else inputs
        for site, block in sites(probe).items():  # no hooks: torch's transformer layers take another path with them
            object.__setattr__(block, "forward", partial(_noting, reached, site, block.forward))
        failure = _failure(probe, batch)
        if failure is not None:
            if name := _weightless(failure, probe):
                raise PreconditionError(
                    f"expand: '{name}' cannot be expanded: other code reads its weight directly "
                    f"({failure}); name other layers with where=[...]"
                ) from failure
            if _failure(copied(model).train(training), batch) is None:
                raise PreconditionError(f"expand: the giant does not run on the example input: {failure}") from failure
        elif not training and (missed := [name for name, count in wanted.items() if reached[name] != count]):
            raise PreconditionError(
                f"expand: '{missed[0]}' was replaced, but the model still calls the old layer (it is kept somewhere "
                "outside the module tree); name other layers with where=[...]"
            )


def _noting(reached: Counter[str], name: str, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    reached[name] += 1
    return forward(x)


def _twice(inputs: Inputs) -> Inputs:
    """The batch twice over: batch statistics need more than one value."""
    return tuple(torch.cat([x, x]) if x.ndim else x for x in inputs)


def _failure(model: nn.Module, inputs: Inputs) -> Exception | None:
    """What the model raises on ``inputs``."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(*inputs)
    except Exception as error:
        return error
    return None


def _weightless(error: Exception, giant: nn.Module) -> str | None:
    """The block whose missing attribute made ``error``, if one did."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    asked = frame.tb_frame.f_locals.get("self") if frame is not None else None
    if not isinstance(error, AttributeError) or not isinstance(asked, Expanded):
        return None
    return next(name for name, block in sites(giant).items() if block is asked)


def _tell(giant: nn.Module) -> None:
    """Say which blocks had to do without norms."""
    bare = [name for name, block in sites(giant).items() if block.spec.inner == "scale"]
    if bare:
        log.warning(
            "expand: %d of %d blocks have per-channel scales instead of norms and biases, because neither a bias nor "
            "the norms that follow could take their shift at fuse (the first: '%s')",
            len(bare),
            len(sites(giant)),
            bare[0],
        )
