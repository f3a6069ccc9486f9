"""Which parts of a block run as a chain: plain modules, called eagerly, whose calls nobody watches.

Whoever looks into a block (hooks, tracers, compilers, transforms, counting modes) is shown its modules, one by one.
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.modules.batchnorm import _BatchNorm

from nbcompile.core.activations import is_transformed
from nbcompile.core.channelwise.chain import run_chain
from nbcompile.core.channelwise.link import Link, computed_in
from nbcompile.core.channelwise.pointwise import is_factor, pointwise_product, reads_one_pixel
from nbcompile.core.layers import why_more_runs

_AXES: dict[type[nn.Module], int] = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}


def run_stages(stages: Iterable[Any], x: Tensor, slope: Tensor) -> Tensor:
    """``x`` through all stages of a block at its slope, a 0-dim tensor.

    A stage's norm and activation run as a chain, and so do the stages after it whose layers are factors.
    """
    if not _unwatched(x, slope) or any(why_more_runs(stage) for stage in stages):
        for stage in stages:
            x = stage(x, slope)
        return x
    run: list[Any] = []
    for stage in stages:
        if run and factor_of(stage.layer) is None:
            x, run = _run(x, run, slope), []
        if not run:
            x = pointwise_product(stage.layer, x)
        run.append(stage)
    return _run(x, run, slope) if run else x


def run_ends(last: nn.Module, norm: nn.Module | None, original: nn.Module | None, y: Tensor, x: Tensor) -> Tensor:
    """A block's last layer and norm of ``y``, and the layer that it replaced of ``x``, added."""
    if not _unwatched(x, y):
        y = last(y) if norm is None else norm(last(y))
        return y if original is None else original(x) + y
    y = pointwise_product(last, y)
    beside = None if original is None else pointwise_product(original, x)
    if isinstance(norm, _BatchNorm) and _fits(link := Link(None, norm, None), y):
        y = run_chain(y, [link], 1.0)
        return y if beside is None else y.add_(beside)
    y = y if norm is None else norm(y)
    return y if beside is None else beside + y


def factor_of(layer: nn.Module) -> Tensor | None:
    """The weight of a layer that multiplies every channel by a number, and does nothing else; else None."""
    if not reads_one_pixel(layer):
        return None
    conv = cast(nn.Conv2d, layer)
    return conv.weight if is_factor(conv) else None


def _run(x: Tensor, run: Sequence[Any], slope: Tensor) -> Tensor:
    """What follows the layer of the first of these stages."""
    factors = [None, *(factor_of(stage.layer) for stage in run[1:])]
    links = [Link(factor, stage.norm, stage.activation) for factor, stage in zip(factors, run, strict=True)]
    if all(_fits(link, x) for link in links):
        return run_chain(x, links, float(slope))
    for i, stage in enumerate(run):
        x = stage.bent(stage.layer(x) if i else x, slope)
    return x


def _fits(link: Link, x: Tensor) -> bool:
    """Whether ``x`` is what ``link`` is made for, and nobody waits for its parts to be called."""
    norm = link.norm
    if x.ndim != _AXES.get(type(norm), -2) + 2 or why_more_runs(norm) or x.shape[1] != norm.num_features:
        return False
    held = (link.factor, *norm._parameters.values())
    if any(w is not None and (w.dtype != computed_in(x) or w.device != x.device) for w in held):
        return False
    if link.factor is not None and not link.factor.all():  # a gradient that is found by dividing by it
        return False
    return x.numel() > x.shape[1] * link.batch and x.is_contiguous() and type(x) is Tensor


def _unwatched(x: Any, *more: Tensor) -> bool:
    """Whether this is eager mode on a CPU, and nobody watches which modules and functions are called."""
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and all(value.device.type == "cpu" for value in (x, *more))
        and torch._C._get_tracing_state() is None
        and not cast(Any, hooks)._has_any_global_hook()
        and not torch._C._len_torch_function_stack()
        and not torch._C._len_torch_dispatch_stack()
        and not is_transformed()
    )
