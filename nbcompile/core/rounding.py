"""How far outputs may differ where a network's own arithmetic rounds more than the tolerance of its dtype."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nbcompile.core.copies import working_copy
from nbcompile.core.example import Inputs, change_tensors
from nbcompile.core.numerics import flatten, output_tolerance, relative_error
from nbcompile.core.running import output_of

ROUNDINGS = 4
"""How many times its own rounding a network's outputs may differ, where that is more than the tolerance."""

CEILING: dict[torch.dtype, float] = {
    # Another network's outputs differ by about 1, those of one with a wrong border or bias by 1e-3 and more: what
    # rounds more than this cannot be told from them, whatever the reason.
    torch.float64: 1e-10,
    torch.float32: 1e-3,
    torch.float16: 0.1,
    torch.bfloat16: 0.3,
}
"""Largest relative error, by dtype, that counts as rounding in any network."""

REMARKABLE = 1e-4
"""Where more than this is allowed, a sentence says why."""


@dataclass(frozen=True)
class Allowed:
    """How far outputs may be apart.

    Attributes:
        error: the largest relative error (see `nbcompile.core.numerics.relative_error`, no unit).
        why: where that is above ``REMARKABLE``, or the network rounds more than ``CEILING``: half a sentence.
        telling: whether outputs tell two networks apart: not where the network itself rounds more than ``CEILING``.
    """

    error: float
    why: str = ""
    telling: bool = True

    def __str__(self) -> str:
        return f"{self.error:.0e}" + (f" ({self.why})" if self.why else "")


def allowed(model: nn.Module, cases: Sequence[tuple[Inputs, Any]], error: float, limit: float | None = None) -> Allowed:
    """The largest relative error that counts as equal: by dtype, or by what the network itself rounds up to a ceiling.

    Args:
        model: in eval mode; left as it is.
        cases: inputs, and the outputs of ``model`` for them.
        error: what was measured; only where it is above the limit is the network's rounding measured, too.
        limit: by dtype; None: the largest of the outputs in ``cases``.

    Raises:
        PreconditionError: if an output holds what is no tensor.
    """
    if limit is None:
        limit = max((output_tolerance(output) for _, output in cases), default=0.0)
    if not error > limit:
        return Allowed(limit)
    own = own_rounding(model, cases)
    ceiling = max((_ceiling(output) for _, output in cases), default=0.0)
    raised = max(limit, min(ROUNDINGS * own, ceiling))
    why = f"the network's own run is {own:.0e} from that of its float64 copy"
    if ROUNDINGS * own > ceiling:
        return Allowed(raised, f"{why}: more is not told from a fault", telling=False)
    return Allowed(raised, why if raised > max(limit, REMARKABLE) else "")


def _ceiling(output: Any) -> float:
    return max((CEILING.get(x.dtype.to_real(), 0.0) for x in flatten(output)), default=0.0)


def own_rounding(model: nn.Module, cases: Sequence[tuple[Inputs, Any]]) -> float:
    """How far a network's outputs are from those of its own float64 copy: what its own arithmetic rounds, no unit.

    Two runs of a deep network in float32 may differ by a few times this, whatever their weights; where it is above
    the tolerance, it is the measure.

    Args:
        model: in eval mode.
        cases: inputs, and the outputs of ``model`` for them.

    Returns:
        The largest relative error; 0 where the network cannot run in float64, and where its outputs are no measure,
        because it gives others when it is called again, or with other random numbers.
    """
    again, exact = working_copy(model), working_copy(model).double()
    largest = 0.0
    for inputs, output in cases:
        try:
            first = output_of(again, inputs)
            with torch.random.fork_rng([]):
                torch.manual_seed(torch.initial_seed() + 1)  # float64 draws other numbers from one seed, too
                second = output_of(again, inputs)
            wanted = output_of(exact, change_tensors(lambda x: x.double() if x.is_floating_point() else x, inputs))
        except RuntimeError:  # its code names a dtype
            return 0.0
        if not relative_error(second, first) <= output_tolerance(output):
            return 0.0
        largest = max(largest, relative_error(output, wanted))
    return largest
