"""How much an operator works, roughly, told by its shapes: what would run for hours is known before it runs."""

from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor

from nbcompile.core.macs import FORMULAS

_CUBIC = ("linalg_", "cholesky", "lu_", "svd", "qr", "geqrf", "ormqr", "orgqr", "triangular_solve")
_PASSES = 30
"""Of a decomposition over its matrix, times its side: what a singular value decomposition takes."""


def work_of(operator: Any, args: tuple[Any, ...], out: Any) -> int:
    """Multiplications of one call of an operator of ATen: of layers as `nbcompile.core.macs` counts them.

    Args:
        operator: an overload.
        args: positional arguments.
        out: what it gives; tensors may be on ``meta``.
    """
    packet = operator.overloadpacket
    if formula := FORMULAS.get(packet) or _MORE.get(packet):
        return formula(out, *args)
    name = packet.__name__.lstrip("_")
    tensors = [*_tensors(args), *_tensors((out,))]
    elements = sum(x.numel() for x in tensors)
    if name.startswith(_CUBIC):
        return _PASSES * elements * max((side for x in tensors for side in x.shape[-2:]), default=1)
    return elements


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Those among ``values``, and in lists among them: operators take no deeper structures."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from (x for x in value if isinstance(x, Tensor))


def _window(dimensions: int) -> Callable[..., int]:
    """Of a pool: each result looks at a whole window."""

    def count(out: Any, x: Tensor, kernel: Any, *rest: Any) -> int:
        first = next(_tensors((out,)))
        sides = tuple(kernel) if isinstance(kernel, (tuple, list)) else (kernel,)
        return first.numel() * prod(map(int, sides if len(sides) > 1 else sides * dimensions))

    return count


def _distance(out: Tensor, left: Tensor, *rest: Any) -> int:
    return out.numel() * left.shape[-1]


_aten = torch.ops.aten
_MORE: dict[Any, Callable[..., int]] = {
    **{pool: _window(1) for pool in (_aten.avg_pool1d, _aten.max_pool1d)},
    **{pool: _window(2) for pool in (_aten.avg_pool2d, _aten.max_pool2d_with_indices, _aten.fractional_max_pool2d)},
    **{pool: _window(3) for pool in (_aten.avg_pool3d, _aten.max_pool3d_with_indices, _aten.fractional_max_pool3d)},
    **dict.fromkeys((_aten._cdist_forward, _aten._pdist_forward, _aten._euclidean_dist), _distance),
}
