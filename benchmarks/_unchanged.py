"""The caller's model and inputs are as they were, whatever is done with them."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nbcompile.core.example import Inputs


class WrongError(Exception):
    """Other outputs than the network's (``wrong``), or a model that was changed (``changed``), and a sentence."""


@contextmanager
def unchanged(model: nn.Module, inputs: Inputs) -> Iterator[tuple[nn.Module, Inputs]]:
    """Whatever happens inside, also an error: model and inputs are the same after.

    Raises:
        WrongError: if they are not.
    """
    before, held = picture(model, inputs), [dict(vars(module)) for module in model.modules()]
    try:
        yield model, inputs
    finally:
        after = picture(model, inputs)
        changed = [place for place in before | after if before.get(place) != after.get(place)]
        del held
        if changed:
            raise WrongError("changed", f"'{changed[0]}' of the caller's model or inputs was changed")


def picture(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Every attribute of every module by identity, every tensor by content, too."""
    tensors = (x for x in tree_leaves(inputs) if isinstance(x, Tensor))
    seen: dict[str, Any] = {f"input {i}": _content(x) for i, x in enumerate(tensors)}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            parts = value if isinstance(value, dict) else {"": value}
            for part, one in parts.items():
                seen[f"{name}.{key}.{part}"] = (id(one), _content(one) if isinstance(one, Tensor) else None)
    return seen


def _content(x: Tensor) -> bytes:
    return hashlib.blake2b(x.detach().contiguous().numpy()).digest()
