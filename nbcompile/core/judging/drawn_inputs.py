"""Inputs on which two networks are compared: drawn like an example, so that what is in them can show."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from nbcompile.core.copies import working_copy
from nbcompile.core.example import Inputs, change_tensors, inputs_for, random_inputs, specs
from nbcompile.core.numerics import is_finite
from nbcompile.core.progress import step
from nbcompile.core.running import output_of

DRAWS = ((0, 2), (1, 1), (2, 3), (3, 2))
"""Seeds, and batch sizes: what is right at one batch size only is found."""

WIDE = 8.0
"""The last draw's deviation: clips that an ordinary input does not reach are reached."""


def drawn_cases(
    model: nn.Module, example: Inputs, more: Sequence[Inputs] = (), batch: int | None = None
) -> list[tuple[Inputs, Any]]:
    """Inputs like ``example``, and what ``model`` gives for them; those of the last draw where that is finite.

    Floating-point values are normal, those of the last draw ``WIDE``. Integers that index tables are drawn from all
    of their rows, and bytes from all that there are.

    Args:
        model: in eval mode; left as it is.
        example: what it is called with.
        more: inputs that are used as they are, behind those that are drawn.
        batch: the one batch size; None: those of ``DRAWS``, or that of ``example`` where the model takes no other.
    """
    own = next((len(x) for x in tree_leaves(example) if x.ndim), None)
    below = _ranges(model, example)
    for size in (batch,) if batch else (None, own):
        try:
            drawn = _run(model, [_drawn(example, below, seed, size or usual) for seed, usual in DRAWS])
            break
        except Exception:
            if size is not None or own is None:
                raise
    if is_finite(drawn[0][1]) and not is_finite(drawn[-1][1]):  # it need not take such wide inputs
        drawn.pop()
    return [*drawn, *_run(model, more)]


def _drawn(example: Inputs, below: list[int], seed: int, batch: int) -> Inputs:
    inputs = _with_integers(random_inputs(specs(example), seed=seed, batch=batch), below, seed)
    if seed != DRAWS[-1][0]:
        return inputs
    return change_tensors(lambda x: x * WIDE if x.is_floating_point() else x, inputs)


def _run(model: nn.Module, calls: Sequence[Inputs]) -> list[tuple[Inputs, Any]]:
    cases = []
    with step("running the reference", len(calls)) as advance:
        for inputs in calls:
            placed = inputs_for(model, inputs, who="verify")
            cases.append((placed, output_of(model, placed)))
            advance()
    return cases


def _ranges(model: nn.Module, example: Inputs) -> list[int]:
    """For each tensor of the inputs, below which number its integers are drawn: as many rows as there are to index."""
    leaves = tree_leaves(example)
    below = [256 if x.dtype is torch.uint8 else 2 for x in leaves]
    rows = sorted({m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)})
    if not rows:
        return below
    tried = working_copy(model).cpu()  # elsewhere an index that is too large ends the process
    for i, x in enumerate(leaves):
        if x.dtype in (torch.int32, torch.int64):
            for count in (row for row in reversed(rows) if row > 2):
                wide = [*below[:i], count, *below[i + 1 :]]
                if _runs(tried, _with_integers(random_inputs(specs(example)), wide, 0, highest=True)):
                    below = wide
                    break
    return below


def _runs(model: nn.Module, inputs: Inputs) -> bool:
    try:
        return is_finite(output_of(model, inputs))
    except Exception:  # an index beyond the table, and whatever the network makes of it
        return False


def _with_integers(inputs: Inputs, below: list[int], seed: int, *, highest: bool = False) -> Inputs:
    """``inputs`` with integers drawn anew; with ``highest`` all are the highest."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(x: Tensor, n: int) -> Tensor:
        if n <= 2:
            return x
        return torch.full_like(x, n - 1) if highest else torch.randint(0, n, x.shape, generator=generator).to(x.dtype)

    leaves, tree = tree_flatten(inputs)
    made: Any = tree_unflatten([drawn(x, n) for x, n in zip(leaves, below, strict=True)], tree)
    return tuple(made)
