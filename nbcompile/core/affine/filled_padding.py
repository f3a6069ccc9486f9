"""Padding whose ring is filled afterwards: ``y = F.pad(x, ...)``, then ``y[:, :, :p, :] = values`` on every side.

So the Diverse Branch Block pads with the shift of a norm (Ding et al. 2021, arXiv 2103.13425, BNAndPadLayer).
"""

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from nbcompile.core.affine.primitive import Context, Primitive


def filled_padding(context: Context, node: fx.Node, plain: Primitive) -> Primitive | str:
    """The padding ``node`` with what is written into its result.

    Args:
        context: of the graph.
        node: an ``F.pad``.
        plain: its own map.

    Returns:
        ``plain`` where nothing is written; a padding with a value per channel where the whole ring and only it is
        filled so before anybody reads; else the reason why not.
    """
    writes = [user for user in node.users if user.target is operator.setitem and user.args[0] is node]
    if not writes:
        return plain
    order = {n: i for i, n in enumerate(node.graph.nodes)}
    if any(order[user] < order[writes[-1]] for user in node.users if user not in writes):
        return f"'{node.name}' is read before it is filled"
    values = [context.constants.value(write.args[2]) for write in writes]
    if any(not isinstance(v, Tensor) and not isinstance(v, (int, float)) for v in values):
        return f"'{node.name}' is filled with values that depend on the input"
    dtype = context.like(None).dtype
    value = _ring(list(node.args[1]), [(w.args[1], v) for w, v in zip(writes, values, strict=True)], dtype)  # type: ignore[arg-type]
    if value is None:
        return f"'{node.name}' is written to, but not its whole ring with one value a channel"
    context.aliasing.forget(node)
    return replace(context.pad(node, list(node.args[1]), "zeros", value), parts=tuple(writes))  # type: ignore


def _ring(sides: list[int], writes: list[tuple[Any, Tensor | float]], dtype: torch.dtype) -> Tensor | None:
    """The value per channel that the writes give the ring; None if they do anything else. Found by doing it."""
    if not any(sides):
        return None
    channels = max(torch.as_tensor(v).numel() for _, v in writes)
    inner = torch.full((2, channels, *(2 * max(sides) + 1 + i for i in range(len(sides) // 2))), torch.nan, dtype=dtype)
    padded = F.pad(inner, sides)
    untouched = padded.isnan()
    padded.masked_fill_(~untouched, torch.inf)
    try:
        for index, value in writes:
            padded[index] = value
    except (IndexError, RuntimeError, TypeError):
        return None
    rows = padded.transpose(0, 1)[:, ~untouched[:, 0]].reshape(channels, -1)
    same = bool((rows == rows[:, :1]).all()) and not bool(rows.isinf().any())
    return rows[:, 0].clone() if same and torch.equal(padded.isnan(), untouched) else None
