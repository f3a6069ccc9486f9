"""The weights of a giant in width in a file: which are wide, and what of them is the original's."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nbcompile.core import record
from nbcompile.core.errors import CheckpointError
from nbcompile.core.serialization.weight_files import EXTRA
from nbcompile.core.width.layout import WidthLayout
from nbcompile.core.width.widths import Widths

_PART = re.compile(rf"(?P<path>(?:.*\.)?)parametrizations\.(?P<key>[^.]+)\.(?:original|0\.{EXTRA})")
_STATISTICS = re.compile(r"(?P<path>(?:.*\.)?)wide_(?P<key>running_mean|running_var)")


@dataclass(frozen=True)
class WideWeights:
    """What a file holds.

    Attributes:
        widths: what the giant remembers.
        own: the original's tensors, under its own keys; those of expansion blocks among them.
        wide: the wide ones: parameters by the original's keys, running statistics by their own.
    """

    widths: Widths
    own: dict[str, Tensor]
    wide: dict[str, Tensor]


def wide_weights(tensors: Mapping[str, Tensor], shared: Any) -> WideWeights | None:
    """What is in a set of weights; None where they are those of no giant in width.

    Args:
        tensors: by key, without a prefix.
        shared: of a description: keys, with the earlier keys of the same tensors; it may hold anything.

    Raises:
        CheckpointError: if its record is malformed, or a tensor does not fit it.
    """
    keys = [key for key, value in tensors.items() if key.endswith(f".0.{EXTRA}") and record.is_record(value)]
    head = next((key for key in keys if _PART.fullmatch(key) and _is_carrier(tensors[key], key)), None)
    if head is None:
        return None
    widths = Widths.from_record(tensors[head], head)
    if head != f"{widths.carrier}.{EXTRA}" and not isinstance(shared, dict):
        raise CheckpointError(f"the giant in width at '{head}' was made as '{widths.carrier}': give the whole of it")
    own, wide = dict[str, Tensor](), dict[str, Tensor]()
    for key, value in tensors.items():
        if found := _PART.fullmatch(key):
            name = found["path"] + found["key"]
            known = _first_name(name, shared, widths)
            if key.endswith(EXTRA):
                continue
            if known is not None:
                own[name] = _narrow(value, widths.layout, widths, known)
                wide.setdefault(known, value)
                continue
        if (found := _STATISTICS.fullmatch(key)) and _first_name(found["path"] + found["key"], shared, widths):
            wide[key] = value
        else:
            own[key] = value
    return WideWeights(widths, own, wide)


def _is_carrier(value: Tensor, key: str) -> bool:
    return "width" in record.decode_record(value, key)


def _first_name(name: str, shared: Any, widths: Widths) -> str | None:
    """The name under which the layout has a tensor, which may have several."""
    if name in widths.slots:
        return name
    first = shared.get(name) if isinstance(shared, dict) else None
    return first if isinstance(first, str) and first in widths.slots else None


def _narrow(value: Tensor, layout: WidthLayout, widths: Widths, name: str) -> Tensor:
    for slot in widths.slots[name]:
        size = len(layout.wide[slot])
        if slot.dim >= value.ndim or value.size(slot.dim) != size:
            raise CheckpointError(
                f"the wide '{name}' has shape {tuple(value.shape)}, and its record {size} in dimension {slot.dim}"
            )
        value = value.index_select(slot.dim, layout.own[slot].to(value.device))
    return value
