"""Operators that TFLite lacks, said in others, before the graph is lowered."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def trunc(x: Tensor) -> Tensor:
    """Towards zero."""
    return torch.where(x < 0, x.ceil(), x.floor())


def fmod(x: Tensor, y: Tensor | float) -> Tensor:
    """What is left of ``x`` over ``y``, with the sign of ``x``."""
    return x - trunc(x / y) * y


def asinh(x: Tensor) -> Tensor:
    """Of the absolute value: below 0 the sum would cancel."""
    size = x.abs()
    return x.sign() * (size + (size * size + 1).sqrt()).log()


def cosine_of(x: Tensor) -> Tensor:
    """``cos(asin(x))``, in factors: ``1 - x * x`` would cancel."""
    return ((1 - x) * (1 + x)).sqrt()


def diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """Every ``width + 1``-th number of the last two dimensions."""
    x = x.movedim((dim1, dim2), (-2, -1))
    height, width = x.shape[-2:]
    first = offset if offset >= 0 else -offset * width
    count = max(0, min(height + min(offset, 0), width - max(offset, 0)))
    return x.flatten(-2)[..., first :: width + 1][..., :count]


def windows_of(x: Tensor, dim: int, size: int, step: int) -> Any:
    """``x.unfold``, by the places of all windows."""
    if not x.ndim:
        return NotImplemented
    dim %= x.ndim
    count = (x.shape[dim] - size) // step + 1
    places = torch.arange(count)[:, None] * step + torch.arange(size)
    apart = (*x.shape[:dim], count, size, *x.shape[dim + 1 :])
    return x.index_select(dim, places.flatten()).reshape(apart).movedim(dim + 1, -1)


def avg_pool3d(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Any:
    """Along the first of three dimensions, as local response norms have it, in two; others have no other form."""
    strides, paddings = ([*sizes] * (3 if len(sizes) == 1 else 1) for sizes in (stride or kernel, padding))
    if len(kernel) != 3 or [*kernel[1:]] != [1, 1] or strides[1:] != [1, 1] or paddings[1:] != [0, 0] or x.ndim != 5:
        return NotImplemented
    made = F.avg_pool2d(
        x.flatten(3), (kernel[0], 1), (strides[0], 1), (paddings[0], 0), ceil_mode, count_include_pad, divisor
    )
    return made.reshape(*made.shape[:3], *x.shape[3:])


def distances(x: Tensor, y: Tensor, p: float, mode: int | None) -> Any:
    """Of all rows of ``x`` from all of ``y``: Manhattan, Euclid, or the largest of a coordinate."""
    apart = x[..., :, None, :] - y[..., None, :, :]
    if p == 2:
        return apart.square().sum(-1).sqrt()
    if p == 1:
        return apart.abs().sum(-1)
    return apart.abs().amax(-1) if p == math.inf else NotImplemented


def bucketize(x: Tensor, bounds: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    """How many bounds are below ``x``; with ``right`` also those that are equal."""
    below = x[..., None] >= bounds if right else x[..., None] > bounds
    return below.sum(-1, dtype=torch.int32 if out_int32 else torch.int64)


def nan_to_num(x: Tensor, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> Tensor:
    """Infinities become the largest numbers, if nothing else is said; TensorFlow's converter writes none itself."""
    limits = torch.finfo(x.dtype)
    x = torch.where(x.isnan(), nan or 0.0, x)
    x = torch.where(x > limits.max, limits.max if posinf is None else posinf, x)
    return torch.where(x < limits.min, limits.min if neginf is None else neginf, x)


def median_along(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The lower one of two in the middle."""
    return kth_value(x, (x.shape[dim] + 1) // 2, dim, keepdim)


def kth_value(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The ``k``-th smallest, counted from 1, and where it is."""
    values, places = (found.narrow(dim, k - 1, 1) for found in x.sort(dim))
    return (values, places) if keepdim else (values.squeeze(dim), places.squeeze(dim))


def var_mean(
    x: Tensor, dims: list[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """Both."""
    over = [*range(x.ndim)] if dims is None else dims
    less = 1 if correction is None else correction
    return torch.var(x, over, correction=less, keepdim=keepdim), x.mean(over, keepdim)


IN_OTHERS: Mapping[str, Callable[..., Any]] = {
    "trunc": trunc,
    **dict.fromkeys(("fmod.Tensor", "fmod.Scalar"), fmod),
    "log1p": lambda x: (x + 1).log(),
    "log2": lambda x: x.log() * (1 / math.log(2)),
    "log10": lambda x: x.log() * (1 / math.log(10)),
    "exp2": lambda x: (x * math.log(2)).exp(),
    "expm1": lambda x: x.exp() - 1,
    "sinh": lambda x: (x.exp() - (-x).exp()) * 0.5,
    "cosh": lambda x: (x.exp() + (-x).exp()) * 0.5,
    "tan": lambda x: x.sin() / x.cos(),
    "atan": lambda x: torch.atan2(x, torch.ones_like(x)),
    "asin": lambda x: torch.atan2(x, cosine_of(x)),
    "acos": lambda x: torch.atan2(cosine_of(x), x),
    "asinh": asinh,
    "acosh": lambda x: (x + ((x - 1) * (x + 1)).sqrt()).log(),
    "atanh": lambda x: ((1 + x) / (1 - x)).log() * 0.5,
    "hypot": lambda x, y: (x * x + y * y).sqrt(),
    "isnan": lambda x: x != x,
    "isinf": lambda x: x.abs() > torch.finfo(x.dtype).max,
    "nan_to_num": nan_to_num,
    "clamp.Tensor": lambda x, low=None, high=None: _at_most(x if low is None else x.maximum(low), high),
    "diagonal": diagonal,
    "unfold": windows_of,
    "avg_pool3d": avg_pool3d,
    "_cdist_forward": distances,
    "bucketize.Tensor": bucketize,
    "median.dim": median_along,
    "kthvalue": kth_value,
    "var_mean.correction": var_mean,
}
"""By name, as in `ops.table.HANDLERS`: a function of the operator's own arguments, in operators of torch.

One that returns ``NotImplemented`` leaves the operator as it is.
"""


def _at_most(x: Tensor, high: Tensor | None) -> Tensor:
    return x if high is None else x.minimum(high)
