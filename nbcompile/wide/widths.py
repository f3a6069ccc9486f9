"""What a giant in width remembers, and the parts of wide tensors that it shows.

The first part carries the record of it all as its extra state, so that the giant's state_dict describes itself: the
layout, the factors, and the network that was widened.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nbcompile.core import record
from nbcompile.core.errors import CheckpointError
from nbcompile.core.serialization.weight_files import EXTRA
from nbcompile.core.width.labels import Slot
from nbcompile.core.width.layout import WidthLayout
from nbcompile.wide.layout_json import layout_from_json, layout_to_json


class Widths:
    """A giant's layout, its factors, and the width that is on; a copy of the giant has its own.

    Args:
        layout: of its channels.
        factors: over the original's widths, of channels that several blocks share.
        inner: of channels within one block.
        description: of the network that was widened, for files; None where its own blocks carry that.
        shared: whether running statistics of norms are those of all widths; else the original's are its own.

    Attributes:
        steps: by how many steps each group of channels is wider now.
        shown: by tensor and dimension, the positions that are shown: that many from the first on, or an index.
        orders: by module, its parameters in the order in which the original has them.
        carrier: the part that has the record, by its name in the giant.
    """

    def __init__(
        self,
        layout: WidthLayout,
        factors: Sequence[float],
        inner: Sequence[float],
        description: Mapping[str, Any] | None = None,
        shared: bool = False,
    ) -> None:
        self.shared = shared
        self.factors, self.inner, self.description = tuple(factors), tuple(inner), description
        self.steps = [0] * len(layout.spaces)
        self.layout = layout
        self.carrier = ""
        self.orders: dict[str, tuple[str, ...]] = {}
        self.shown = self.own

    def __deepcopy__(self, memo: dict[int, Any]) -> "Widths":
        memo[id(self)] = made = Widths(self.layout, self.factors, self.inner, self.description, self.shared)
        made.carrier, made.orders = self.carrier, self.orders
        made.turn_to(self.steps)
        return made

    def turn_to(self, steps: Sequence[int], layout: WidthLayout | None = None) -> None:
        """Let all parts show another width, or those of another layout of the same sizes."""
        if layout is not None:
            self.layout = layout
            for known in ("own", "record", "slots"):
                self.__dict__.pop(known, None)
        self.steps = list(steps)
        self.shown = self._table(steps) if any(steps) else self.own

    def describe(self, description: Mapping[str, Any]) -> None:
        """Take another description of the network that was widened."""
        self.description = description
        self.__dict__.pop("record", None)

    def choices(self, number: int) -> tuple[float, ...]:
        """The factors of a space; 1 alone where it is frozen."""
        space = self.layout.spaces[number]
        return (1.0,) if space.frozen else self.inner if space.inner else self.factors

    def widest(self) -> list[int]:
        """Steps of the widest."""
        return [space.steps(max(self.choices(n))) for n, space in enumerate(self.layout.spaces)]

    @cached_property
    def slots(self) -> dict[str, list[Slot]]:
        """By tensor that is wider than the original's, its dimensions that are."""
        found: dict[str, list[Slot]] = {}
        for slot, places in self.layout.own.items():
            if slot.dim >= 0 and len(self.layout.wide[slot]) > len(places):
                found.setdefault(slot.tensor, []).append(slot)
        return found

    @cached_property
    def own(self) -> dict[str, dict[int, int | Tensor]]:
        """What is shown at the original's width."""
        return self._table([0] * len(self.steps))

    def _table(self, steps: Sequence[int]) -> dict[str, dict[int, int | Tensor]]:
        return {
            name: {slot.dim: _first_or_all(self.layout.index(slot, steps)) for slot in slots}
            for name, slots in self.slots.items()
        }

    @cached_property
    def record(self) -> Tensor:
        """Layout, factors and description, encoded."""
        width = {
            "carrier": self.carrier,
            "factors": list(self.factors),
            "inner": list(self.inner),
            "shared": self.shared,
            "layout": layout_to_json(self.layout),
        }
        return record.encode_record({"width": width} | ({"model": self.description} if self.description else {}))

    def take(self, state: Tensor) -> None:
        """Take over the layout of a loaded record.

        Raises:
            CheckpointError: if it is that of a giant with other sizes.
        """
        loaded = self.from_record(state, EXTRA)
        layout, self.shared = loaded.layout, loaded.shared
        for slot, places in self.layout.own.items():
            wide = layout.wide.get(slot, ())
            if len(wide) != len(self.layout.wide[slot]) or len(layout.own[slot]) != len(places):
                raise CheckpointError(
                    f"the loaded giant in width has another '{slot.tensor}': widen the model with the factors of the "
                    "one that was saved"
                )
        self.turn_to([0] * len(layout.spaces), layout)

    @classmethod
    def from_record(cls, state: Tensor, where: str) -> "Widths":
        """Those of a giant's record.

        Raises:
            CheckpointError: if it is none of a giant in width.
        """
        content = record.decode_record(state, where)
        try:
            data = content["width"]
            factors, inner = ([float(x) for x in data[key]] for key in ("factors", "inner"))
            made = cls(
                layout_from_json(data["layout"]), factors, inner, content.get("model"), data.get("shared") is True
            )
            made.carrier = str(data["carrier"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the record '{where}' is of no giant in width: {type(error).__name__}: {error}"
            ) from None
        return made


class WidthPart(nn.Module):
    """Gives the part of a wide tensor that the width shows which is on."""

    def __init__(self, widths: Widths, name: str) -> None:
        super().__init__()
        self.widths, self.name = widths, name

    def forward(self, wide: Tensor) -> Tensor:
        """The part."""
        shown, requires_grad = self.widths.shown[self.name], wide.requires_grad
        for dim, places in shown.items():
            if isinstance(places, int):
                wide = wide.narrow(dim, 0, places)  # needs no copy
                continue
            if places.device != wide.device:
                shown[dim] = places = places.to(wide.device)
            wide = wide.index_select(dim, places)
        part = wide.contiguous()  # a linear layer of another stride rounds otherwise,
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            part.requires_grad_(requires_grad)  # and one that asks for no gradient, even where there are none
        return part


class RecordingPart(WidthPart):
    """The one that carries the giant's record."""

    def get_extra_state(self) -> Tensor:
        """The record, as a fresh uint8 tensor."""
        return self.widths.record.clone()

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what a loaded giant says of its channels.

        Raises:
            CheckpointError: if it has other sizes.
        """
        if not torch.equal(record.as_bytes(state), self.widths.record):
            self.widths.take(state)


def _first_or_all(index: Tensor) -> int | Tensor:
    return len(index) if torch.equal(index, torch.arange(len(index))) else index


def giant_in_width(model: nn.Module) -> tuple[nn.Module, Widths] | None:
    """The giant in width that ``model`` is or has inside, and what it remembers; None where there is none."""
    for name, module in model.named_modules():
        if isinstance(module, RecordingPart):
            return model.get_submodule(name.removesuffix(module.widths.carrier).rstrip(".")), module.widths
    return None


def widths_of(model: nn.Module) -> Widths | None:
    """What a giant in width remembers, or None where ``model`` is none."""
    found = giant_in_width(model)
    return None if found is None else found[1]
