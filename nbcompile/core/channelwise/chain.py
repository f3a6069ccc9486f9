"""A chain of links as one autograd function.

Every channel has all that its output needs, its batch statistics included, so the chain runs a few channels at a time,
in the processor's cache: a feature map is read once and written once. Kept for backward is the input alone, and two
numbers a channel of each link; what lies between is computed again.

Source: In-Place ABN (Rota Bulò et al. 2018, arXiv 1712.02616) for norm and activation as one function that keeps one
feature map; computed again rather than inverted here, which holds for every slope and activation.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nbcompile.core.channelwise.link import Link, LinkCall, computed_in

CACHE = 1 << 20
"""Bytes of a feature map that a thread works on at a time."""


def run_chain(x: Tensor, links: Sequence[Link], slope: float) -> Tensor:
    """``x`` through all links.

    Args:
        x: ``(N, C, *spatial)``, contiguous, more than one value a channel; in bfloat16 all is computed in float32, and
            rounded once.
        links: at least one, their weights in the dtype of the computation.
        slope: of the activations, in [0, 1].

    Returns:
        A new tensor of the shape and dtype of ``x``.
    """
    weights = [weight for link in links for weight in link.weights]
    result: Tensor = _Chain.apply(x, tuple(links), slope, *weights)
    return result


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, links: Any, slope: float, *weights: Any) -> Tensor:
        calls = [LinkCall.begin(link, weights[3 * i : 3 * i + 3], x) for i, link in enumerate(links)]
        y = torch.empty_like(x)
        for part in _parts(x):
            z = _taken(x, part)
            for call in calls:
                z = call.of(part).first(z)
                if call.link.activation is not None:
                    z = call.link.activation.bend(z, slope)
            _put(y, part, z)
        for call in calls:
            call.update(x.numel() // x.shape[1])
        ctx.links, ctx.slope = links, slope
        ctx.save_for_backward(x, *weights, *(s for call in calls for s in (call.mean, call.scale)))
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, *saved = ctx.saved_tensors
        count = len(ctx.links)
        weights, statistics = saved[: 3 * count], saved[3 * count :]
        calls = [
            LinkCall(link, *weights[3 * i : 3 * i + 3], *statistics[2 * i : 2 * i + 2])
            for i, link in enumerate(ctx.links)
        ]
        if torch.is_grad_enabled():  # somebody will differentiate the gradients
            into, *of_weights = _differentiable(x, calls, weights, ctx.slope, gradient)
            return into, None, None, *of_weights
        if count == 1 and ctx.links[0].activation is None and x.dtype == computed_in(x):  # nothing to compute again
            into, *of_weights = calls[0].gradients(gradient.contiguous().flatten(2), x.flatten(2))
            asked = (None if w is None else of for w, of in zip(weights, of_weights, strict=True))
            return into.view(x.shape), None, None, *asked
        into, of_weights = torch.empty_like(x), [None if w is None else torch.empty_like(w) for w in weights]
        for part in _parts(x):
            _put(into, part, _backward(x, gradient, part, calls, ctx.slope, of_weights))
        return into, None, None, *of_weights


def _backward(
    x: Tensor, gradient: Tensor, part: slice, calls: Sequence[LinkCall], slope: float, of_weights: Sequence[Any]
) -> Tensor:
    """The gradient of some channels of ``x``; those of their weights are written into ``of_weights``."""
    y, steps = _taken(x, part), []
    for call in calls:
        own, activation, arrived = call.of(part), call.link.activation, y
        if call is not calls[-1] or activation is not None:
            y = own.again(y)
        steps.append((own, arrived, y))
        if call is not calls[-1] and activation is not None:
            y = activation.bend(y, slope)
    g = _taken(gradient, part)
    for i in reversed(range(len(calls))):
        own, arrived, normalised = steps.pop()
        if own.link.activation is not None:
            g = own.link.activation.bend_gradient(g, normalised, slope)
        g, *found = own.gradients(g, arrived)
        for into, value in zip(of_weights[3 * i : 3 * i + 3], found, strict=True):
            if into is not None:
                into[part] = value
    return g


def _differentiable(
    x: Tensor, calls: Sequence[LinkCall], weights: Sequence[Tensor | None], slope: float, gradient: Tensor
) -> list[Tensor | None]:
    """The gradients of ``x`` and of all weights, with a graph of their own."""
    with torch.enable_grad():
        y = x
        for call in calls:
            y = call.differentiably(y, slope)
        asked = [value for value in (x, *weights) if value is not None and value.requires_grad]
        found = iter(torch.autograd.grad(y, asked, gradient, create_graph=True))
    return [next(found) if value is not None and value.requires_grad else None for value in (x, *weights)]


def _parts(x: Tensor) -> Iterator[slice]:
    """Channels to work on at a time."""
    channels = x.shape[1]
    size = x.numel() // channels * computed_in(x).itemsize
    at_once = max(1, CACHE * torch.get_num_threads() // size)
    return (slice(i, min(i + at_once, channels)) for i in range(0, channels, at_once))


def _taken(x: Tensor, part: slice) -> Tensor:
    """These channels as ``(1, C, values)``, in the dtype of the computation, contiguous."""
    return x[:, part].transpose(0, 1).to(computed_in(x)).flatten(1).contiguous()[None]


def _put(into: Tensor, part: slice, x: Tensor) -> None:
    """The inverse of :func:`_taken`."""
    place = into[:, part].transpose(0, 1)
    place.copy_(x.view(place.shape))
