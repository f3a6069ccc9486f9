"""Whether outputs are those of a network: part by part, by its dtype, or by what the network itself rounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nbcompile.core.copies import working_copy
from nbcompile.core.judging.compared import Allowed, compared_parts, differences
from nbcompile.core.judging.rounding import Cases, exact_outputs, is_repeatable, swayed_outputs
from nbcompile.core.numerics import flatten, relative_error, stacked
from nbcompile.core.running import tensors_of


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


def judge(model: nn.Module, cases: Cases, outputs: Sequence[Any], *, least: float = 0.0) -> Judgment:
    """Compare outputs with those of a network.

    Every part of an output (`nbcompile.core.judging.value_parts`) has to be within the tolerance of its dtype, relative
    to that part's own size. Where one is not, it is measured how much the network itself rounds there.

    Args:
        model: in eval mode; left as it is.
        cases: inputs, and the outputs of ``model`` for them.
        outputs: what is judged, a case each.
        least: relative error that is allowed in any case, of floating-point outputs.

    Raises:
        PreconditionError: if structures, shapes or dtypes differ, or an output holds what is no tensor.
    """
    wanted = [output for _, output in cases]
    finite = all(isfinite(relative_error(*pair)) for pair in zip(outputs, wanted, strict=True))
    parts = compared_parts(outputs, wanted, least)
    error = max((one.error for one in parts if not one.part.name), default=0.0) if finite else inf
    plain = Allowed(max((one.tolerance for one in parts), default=0.0))
    over = [one for one in parts if not one.error <= one.tolerance]
    if not over or not finite or not is_repeatable(model, cases):
        limits = dict.fromkeys(over, plain)
    else:
        how, moved = _movement(model, cases)
        limits = {one: one.allowed(moved, how) for one in over}
    failing = [one for one in over if not one.error <= limits[one].error]
    if failing:
        worst = max(failing, key=lambda one: one.error / max(limits[one].error, 1e-300))
        return Judgment(False, worst.error, limits[worst], worst.name)
    whole = [limits[one] for one in over if not one.part.name]
    return Judgment(finite, error, max((plain, *whole), key=lambda limit: limit.error))


def flat(model: nn.Module) -> nn.Module:
    """A copy of ``model`` that gives its tensors in order, as a file does."""
    running = working_copy(model)
    running.register_forward_hook(_flattened)
    return running


def _flattened(model: nn.Module, inputs: Any, output: Any) -> list[Tensor]:
    return flatten(output)


def _movement(model: nn.Module, cases: Cases) -> tuple[str, dict[tuple[str, tuple[int, ...]], Tensor]]:
    """How far the network's own outputs are apart by rounding alone, value by value, and where that is from."""
    wanted = stacked([output for _, output in cases])
    most = {key: torch.zeros_like(y) for key, y in wanted.items()}

    def widen(others: Sequence[Any]) -> None:
        for key, other in stacked(others).items():
            if key in most and other.shape == most[key].shape:
                most[key] = torch.maximum(most[key], differences(other, wanted[key]))

    numbers = (*tensors_of(model), *tree_leaves([inputs for inputs, _ in cases]))
    in_float64 = all(x.dtype == torch.float64 for x in numbers if x.is_floating_point())
    exact = None if in_float64 else exact_outputs(model, cases)
    if exact is not None:
        widen(exact)
        return "the network's own run is {:.0e} from that of its float64 copy", most
    for others in zip(*(swayed_outputs(model, inputs) for inputs, _ in cases), strict=True):
        widen(others)
    return "the network's own outputs move by {:.0e} with the last digits of its numbers", most
