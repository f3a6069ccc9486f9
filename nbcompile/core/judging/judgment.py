"""Whether outputs are those of a network: part by part, by its dtype, or by what the network itself rounds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from nbcompile.core.judging.compared import Allowed, compared_parts, differences
from nbcompile.core.judging.rounding import Cases, exact_outputs, reproduced, swayed_outputs, unchanged
from nbcompile.core.numerics import relative_error, stacked


@dataclass(frozen=True)
class Judgment:
    """How outputs compare with those of a network.

    Attributes:
        passed: whether every part of every output is within what is allowed there.
        error: the largest relative error of a whole output; of the part that fails, relative to that part.
        limit: what is allowed there.
        part: the part that fails, in words; empty where it is a whole output.
    """

    passed: bool
    error: float
    limit: Allowed
    part: str = ""

    @property
    def place(self) -> str:
        """Where it fails, to stand behind a sentence; empty where it is a whole output."""
        return f" in {self.part}" if self.part else ""


def judge(
    model: nn.Module,
    cases: Cases,
    outputs: Sequence[Any],
    *,
    least: float = 0.0,
    read: Callable[[Any], Any] = unchanged,
) -> Judgment:
    """Compare outputs with those of a network.

    Every part of an output (`nbcompile.core.judging.value_parts`) has to be within the tolerance of its dtype, relative
    to that part's own size. Where one is not, it is measured how much the network itself rounds there.

    Args:
        model: in eval mode; left as it is.
        cases: inputs, and what ``read`` gives of the outputs of ``model`` for them.
        outputs: what is judged, a case each.
        least: relative error that is allowed in any case, of floating-point outputs.
        read: what of an output of ``model`` is compared, such as `flatten`.

    Raises:
        PreconditionError: if structures, shapes or dtypes differ, or an output holds what is no tensor.
    """
    wanted = [output for _, output in cases]
    finite = all(isfinite(relative_error(*pair)) for pair in zip(outputs, wanted, strict=True))
    parts = compared_parts(outputs, wanted, least)
    error = max((one.error for one in parts if not one.part.name), default=0.0) if finite else inf
    plain = Allowed(max((one.tolerance for one in parts), default=0.0))
    over = [one for one in parts if not one.error <= one.tolerance]
    again = reproduced(model, cases, read) if over and finite else None
    if not finite:
        limits = dict.fromkeys(over, plain)
        failing = over
    elif again is None:  # it gives other outputs each time: what a number is stored with is all that is known
        limits = {one: one.allowed({}, "what is constant in it rounds so much") for one in over}
        failing = [one for one in over if not one.error <= limits[one].error]
    else:
        moved = _Movement(model, again, cases, read)
        limits = {one: one.allowed(moved.most, moved.how) for one in over}
        failing = [one for one in over if not one.error <= limits[one].error]
        if moved.exact and failing and all(one.part.name for one in failing):
            # In a few small values the rounding of one run says little of that of another, with other weights.
            moved.sway()
            limits |= {one: one.allowed(moved.most, moved.how) for one in failing}
            failing = [one for one in failing if not one.error <= limits[one].error]
    if failing:
        worst = max(failing, key=lambda one: one.error / max(limits[one].error, 1e-300))
        return Judgment(False, worst.error, limits[worst], worst.name)
    whole = [limits[one] for one in over if not one.part.name]
    return Judgment(finite, error, max((plain, *whole), key=lambda limit: limit.error))


class _Movement:
    """How far the network's own outputs are apart by rounding alone, value by value.

    Args:
        model: the network.
        again: a copy of it, which becomes its float64 copy.
        cases: inputs, and what ``read`` gives of the outputs of ``model`` for them.
        read: what of an output of ``model`` is compared.

    Attributes:
        most: the largest difference that was seen, by the keys of `nbcompile.core.numerics.stacked`.
        how: what was measured, with room for the number.
        exact: whether that is how far the network is from its float64 copy.
    """

    def __init__(self, model: nn.Module, again: nn.Module, cases: Cases, read: Callable[[Any], Any]) -> None:
        self._model, self._cases, self._read = model, cases, read
        self._wanted = stacked([output for _, output in cases])
        self.most = {key: torch.zeros_like(y) for key, y in self._wanted.items()}
        numbers = (*model.parameters(), *tree_leaves([inputs for inputs, _ in cases]))  # a giant's slopes are float32
        in_float64 = all(x.dtype == torch.float64 for x in numbers if x.is_floating_point())
        outputs = None if in_float64 else exact_outputs(again, cases)
        self.exact = outputs is not None
        self.how = "the network's own run is {:.0e} from that of its float64 copy"
        if outputs is not None:
            self._widen(outputs)
        else:
            self.how = "the network's own outputs move by {:.0e} with the last digits of its numbers"
            self.sway()

    def sway(self) -> None:
        """Let every number move by one rounding, a few times."""
        for outputs in zip(*(swayed_outputs(self._model, inputs) for inputs, _ in self._cases), strict=True):
            self._widen(outputs)

    def _widen(self, outputs: Sequence[Any]) -> None:
        for key, y in stacked(list(map(self._read, outputs))).items():
            if key in self.most and y.shape == self.most[key].shape:
                self.most[key] = torch.maximum(self.most[key], differences(y, self._wanted[key]))
