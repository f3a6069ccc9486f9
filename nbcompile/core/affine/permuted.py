"""What a linear layer on channels-last maps meets behind a permutation: norms and factors of channels-first maps.

    z = norm(permute(linear(x)))     =>     z = permute(linear'(x))

They have one number a channel, and the channels are those that the layer gives: they could stand before the
permutation, and there they merge.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from nbcompile.core.affine.arithmetic import ARITHMETIC_RULES
from nbcompile.core.affine.chains import Chain
from nbcompile.core.affine.lifter import Lifter
from nbcompile.core.affine.norms import NORM_RULES
from nbcompile.core.affine.primitive import Primitive
from nbcompile.core.algebra import AffineMap, per_channel
from nbcompile.core.graph.nodes import after, argument, norm_of, operator_of
from nbcompile.core.graph.operators import called, named

_SWAPS = tuple(map(named, ("transpose", "swapaxes", "swapdims")))
_MOVABLE = tuple(map(named, (*ARITHMETIC_RULES, *NORM_RULES)))


def across_permutations(lifter: Lifter) -> Iterator[Chain]:
    """Chains of a linear layer and what is behind the permutation that alone reads it, as it were on its output."""
    for node in lifter.gm.graph.nodes:
        order = after(lifter.gm, node)
        if order is None or called(order) not in (named("permute"), *_SWAPS):
            continue
        layer = lifter.lift(node)
        if isinstance(layer, Primitive) and layer.layer and layer.axes == {0}:
            behind = tuple(_behind(lifter, order))
            if behind:
                yield Chain(layer.source, (layer, *behind))


def _behind(lifter: Lifter, order: fx.Node) -> Iterator[Primitive]:
    """Norms and factors, one after the other, of dimension 1, where ``order`` puts the last one."""
    shape = lifter.shapes.of(order) if called(order) in _SWAPS else _dimensions(order)
    rank = None if shape is None else len(shape)
    node = order
    while (reader := after(lifter.gm, node)) is not None and operator_of(lifter.gm, reader) in _MOVABLE:
        one, norm = lifter.lift(reader), norm_of(lifter.gm, reader)
        if not isinstance(one, Primitive):
            return
        if rank is None and norm is not None and norm.batch and len(one.axes) == 1:
            rank = max(one.axes) + 2
        if rank is None or rank - 2 not in one.axes or _second(order, rank) != rank - 1:
            return
        yield _moved(one, rank - 2)
        node = reader


def _dimensions(order: fx.Node) -> tuple[Any, ...] | None:
    """What ``order`` is given, however it is written; None where that is computed."""
    first = argument(order, 1, "dims", argument(order, 1, "dim0", argument(order, 1, "axis0")))
    second = argument(order, 2, "dim1", argument(order, 2, "axis1"))
    given = order.args[1:] if len(order.args) > 2 else first if second is None else (first, second)
    return tuple(given) if isinstance(given, (list, tuple)) and all(isinstance(d, int) for d in given) else None


def _second(order: fx.Node, rank: int) -> int | None:
    """Which dimension ``order`` makes dimension 1; None where that is computed."""
    given = _dimensions(order)
    if given is None:
        return None
    dims: list[int] = [dim % rank for dim in given]
    if called(order) not in _SWAPS:
        return dims[1]
    return dims[1 - dims.index(1)] if 1 in dims else 1


def _moved(one: Primitive, axes: int) -> Primitive:
    """``one``, which is of maps of ``axes``, as of vectors."""

    def build(dtype: torch.dtype | None, _: int, channels: int) -> AffineMap:
        factors = one.build(dtype, axes, channels)
        return per_channel(factors.weight.flatten(), factors.bias, 0)

    return replace(one, axes=frozenset({0}), build=build)
