"""Numbers that modules keep, and by which their code cuts channels: they grow with those.

On the copy that is run, each such number knows where it stands. Where a slice ends at it, or a split is told it, it is
how many channels there are.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from nbcompile.core.width.labels import ATTRIBUTE, Slot


class Number(int):
    """A number that a module keeps, or a whole part of one.

    Attributes:
        slot: its name.
        whole: what is kept; the number itself, unless it was divided.
    """

    slot: Slot
    whole: int

    def __floordiv__(self, other: int) -> int:
        return number(int(self) // other, self.slot, self.whole) if self % other == 0 else int(self) // other


def number(value: int, slot: Slot, whole: int) -> Number:
    """``value``, which is ``whole`` or a part of it, and kept at ``slot``."""
    made = Number(value)
    made.slot, made.whole = slot, whole
    return made


def mark_numbers_(model: nn.Module) -> None:
    """Let all numbers of more than 1 that modules keep, by themselves or in a tuple, know where they stand.

    Those of torch's own modules are left alone: they tell the sizes of parameters.
    """
    for path, module in model.named_modules():
        if not type(module).__module__.startswith("torch.nn"):
            for key, value in vars(module).items():
                name = f"{path}.{key}".lstrip(".")
                if type(value) in (tuple, list) and value and all(type(part) is int for part in value):
                    vars(module)[key] = type(value)(_marked(part, f"{name}.{i}") for i, part in enumerate(value))
                else:
                    vars(module)[key] = _marked(value, name)


def _marked(value: Any, name: str) -> Any:
    return number(value, Slot(name, ATTRIBUTE), value) if type(value) is int and value > 1 else value


def set_numbers_(model: nn.Module, numbers: Mapping[str, int]) -> None:
    """Set those that modules of ``model`` keep, by their names."""
    for name, value in numbers.items():
        path, _, key = name.rpartition(".")
        if key.isdecimal():
            path, _, kept = path.rpartition(".")
            owner = model.get_submodule(path)
            parts = list(getattr(owner, kept))
            parts[int(key)] = value
            setattr(owner, kept, type(getattr(owner, kept))(parts))
        else:
            setattr(model.get_submodule(path), key, value)
