"""Other inputs of the kind of an example's: at another batch, at other sizes."""

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor


def variations(tensors: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], bool]]:
    """Other inputs of the kind of ``tensors``, and whether their sizes are others, too, not only the batch.

    First all sizes but the channels of maps; then, for sequences, their lengths.
    """
    batch = batch_of(tensors)
    more = (
        batch + 1 + (batch == 1)
    )  # sizes are doubled, a batch of 1 is not: what grows with one does not with the other
    if any(map(_sizes_of, tensors)):
        yield [resized(x, batch, more, _sizes_of(x)) for x in tensors], True
    if any(x.ndim == 3 and x.is_floating_point() for x in tensors):
        yield [resized(x, batch, more, [1] if x.ndim in (2, 3) else ()) for x in tensors], True
    yield [resized(x, batch, batch + 1) for x in tensors], False
    yield [resized(x, batch, batch) for x in tensors], False


def open_sizes(
    takes: Callable[[Sequence[Tensor]], bool], tensors: Sequence[Tensor], others: Sequence[Tensor]
) -> list[set[int]]:
    """The dimensions of each input, behind the batch, in which ``others`` are like ``tensors``, and need not be.

    Args:
        takes: whether the network takes inputs.
        tensors: an example.
        others: on which the network was run, too.
    """
    found: list[set[int]] = [set() for _ in tensors]
    same = [{d for d in range(1, a.ndim) if a.shape[d] == b.shape[d]} for a, b in zip(tensors, others, strict=True)]
    batch = batch_of(tensors)
    for dim in sorted(set().union(*same)):
        for smaller in (False, True):
            held = [
                dim in dims and x.ndim > 2 and x.shape[dim] > smaller for dims, x in zip(same, tensors, strict=True)
            ]
            tried = [resized(x, batch, batch, [dim] * one, smaller) for x, one in zip(tensors, held, strict=True)]
            if any(held) and takes(tried):
                for dims in (dims for dims, one in zip(found, held, strict=True) if one):
                    dims.add(dim)
                break
    return found


def batch_of(tensors: Sequence[Tensor]) -> int:
    """The number of samples."""
    return next((x.shape[0] for x in tensors if x.ndim), 0)


def resized(x: Tensor, batch: int, wanted: int, dims: Collection[int] = (), smaller: bool = False) -> Tensor:
    """Another number of samples, other sizes in ``dims``, other values: the same ones at other places."""
    for d, size in enumerate(x.shape):
        length = wanted if d == 0 and size == batch else size
        if d in dims:
            length = size // 2 if size >= 64 or smaller else 2 * size
        if size:
            x = x.index_select(d, torch.arange(length, device=x.device) % size)
        elif length:
            x = x.new_ones(*x.shape[:d], length, *x.shape[d + 1 :])
    return x.flatten().roll(1).reshape(x.shape)


def _sizes_of(x: Tensor) -> range:
    return range(1 if not x.is_floating_point() else 2, x.ndim)
