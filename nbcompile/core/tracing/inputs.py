"""Inputs to run a network on: where nobody gave an example, and others of the kind of one."""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from nbcompile.core.example import TensorSpec, origin_of, random_inputs
from nbcompile.core.running import tensors_of
from nbcompile.core.tracing.call import SLOT, Call

_SIZES = (16, 32, 64, 224, 28, 128, 8, 5)
_SMALL, _LARGE = 64, 128
_TRIES = 40
_ELEMENTS = 2**24
"""Of a tensor, at most."""


def known_inputs(model: nn.Module) -> tuple[Any, ...] | None:
    """What ``model`` itself says that it is called with: by what it remembers, or as timm's and torchvision's do."""
    origin = origin_of(model)
    if origin is not None:
        return origin.inputs
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = getattr(config, "input_size", None) or (config.get("input_size") if isinstance(config, dict) else None)
    if size is not None:
        return (TensorSpec((1, *size)),)
    if type(model).__module__.startswith("torchvision.models.") and ".detection" not in type(model).__module__:
        spatial = (16, 112, 112) if ".video" in type(model).__module__ else (224, 224)
        return (TensorSpec((1, 3, *spatial)),)
    return None


def guesses(model: nn.Module, call: Call) -> Iterator[list[Tensor]]:
    """Tensors for ``call`` that may fit: of the kind that the first layers take, in usual sizes."""
    device = next((x.device for x in tensors_of(model)), torch.device("cpu"))
    dtype = next(
        (p.dtype for p in tensors_of(model) if p.is_floating_point() or p.is_complex()), torch.get_default_dtype()
    )
    count = sum(leaf is SLOT for leaf in call.leaves)
    for spec in _specs(model, dtype):
        yield [x.to(device) for x in random_inputs([spec] * count)]


def _specs(model: nn.Module, dtype: torch.dtype) -> Iterator[TensorSpec]:
    seen: set[tuple[int, ...]] = set()
    found = (spec for module in model.modules() for spec in _of(module, dtype))
    usual = (TensorSpec(shape, dtype) for shape in ((2, 3, 32, 32), (2, 8), (2, 3, 32), (2, 3, 16, 16, 16)))
    for spec in chain(found, usual):
        if spec.shape not in seen and len(seen) < _TRIES and prod(spec.shape) <= _ELEMENTS:
            seen.add(spec.shape)
            yield spec


def _of(module: nn.Module, dtype: torch.dtype) -> Iterator[TensorSpec]:
    """What ``module`` may take: an index, or maps of as many channels as its tensors say."""
    if isinstance(module, nn.Embedding):
        yield TensorSpec((2, 8), torch.int64)
        return
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.ndim in (1, 2):
            channels = tensor.shape[-1]
            yield from (TensorSpec((2, *shape), dtype) for shape in ((channels,), (9, channels)))
            yield from (TensorSpec((2, channels, *(16,) * axes), dtype) for axes in (2, 1, 3))
        elif tensor.ndim > 2:
            transposed = isinstance(module, _ConvTransposeNd)
            channels = tensor.shape[0] if transposed else tensor.shape[1] * getattr(module, "groups", 1)
            sizes = _SIZES if tensor.ndim < 5 else _SIZES[:2]
            yield from (TensorSpec((2, channels, *(size,) * (tensor.ndim - 2)), dtype) for size in sizes)


def variations(tensors: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], bool]]:
    """Other inputs of the kind of ``tensors``, and whether their sizes are others, too, not only the batch.

    First all sizes but the channels of maps, large ones a quarter and then half as large; then, for sequences, their
    lengths.
    """
    batch = batch_of(tensors)
    more = (
        batch + 1 + (batch == 1)
    )  # sizes are doubled, a batch of 1 is not: what grows with one does not with the other
    for small in (4, 2):
        if any(small == 2 or x.shape[d] >= _LARGE for x in tensors for d in _sizes_of(x)):
            yield [other_input(x, batch, more, _sizes_of(x), small) for x in tensors], True
    if any(x.ndim == 3 and x.is_floating_point() for x in tensors):
        yield [other_input(x, batch, more, [1] if x.ndim in (2, 3) else ()) for x in tensors], True
    yield [other_input(x, batch, batch + 1) for x in tensors], False
    yield [other_input(x, batch, batch) for x in tensors], False


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
            dims_of = [[dim] * one for one in held]
            tried = [other_input(x, batch, batch, d, 2, smaller) for x, d in zip(tensors, dims_of, strict=True)]
            if any(held) and takes(tried):
                for dims in (dims for dims, one in zip(found, held, strict=True) if one):
                    dims.add(dim)
                break
    return found


def batch_of(tensors: Sequence[Tensor]) -> int:
    """The number of samples."""
    return next((x.shape[0] for x in tensors if x.ndim), 0)


def other_input(
    x: Tensor, batch: int, wanted: int, dims: Collection[int] = (), small: int = 2, smaller: bool = False
) -> Tensor:
    """Another number of samples, other sizes in ``dims``, other values: the same ones at other places.

    Small sizes become twice as large, unless all are to be ``smaller``; others half, and large ones by ``small``.
    """
    for d, size in enumerate(x.shape):
        length = wanted if d == 0 and size == batch else size
        if d in dims:
            length = size // (small if size >= _LARGE else 2) if size >= _SMALL or smaller else 2 * size
        if size:
            x = x.index_select(d, torch.arange(length, device=x.device) % size)
        elif length:
            x = x.new_ones(*x.shape[:d], length, *x.shape[d + 1 :])
    return x.flatten().roll(1).reshape(x.shape)


def _sizes_of(x: Tensor) -> range:
    return range(1 if not x.is_floating_point() else 2, x.ndim)
