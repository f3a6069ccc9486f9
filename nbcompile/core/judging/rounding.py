"""How much a network's own arithmetic rounds: where that is more than the tolerance of its dtype, it is the measure."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nbcompile.core.copies import working_copy
from nbcompile.core.example import Inputs, change_tensors
from nbcompile.core.numerics import output_tolerance, relative_error
from nbcompile.core.random_state import forked_rng
from nbcompile.core.running import output_of

ROUNDINGS = 4
"""How many times its own rounding a network's outputs may differ, where that is more than the tolerance."""

SWAYS = 8
"""Draws of what every number is moved by."""

Cases = Sequence[tuple[Inputs, Any]]
"""Inputs of a network, and its outputs for them."""


def own_rounding(model: nn.Module, cases: Cases) -> float:
    """How far a network's outputs are from those of its own float64 copy: what its own arithmetic rounds, no unit.

    Two runs of a deep network in float32 may differ by a few times this, whatever their weights.

    Args:
        model: in eval mode.
        cases: inputs, and the outputs of ``model`` for them.

    Returns:
        The largest relative error; 0 where the network cannot run in float64, and where its outputs are no measure,
        because it gives others when it is called again, or with other random numbers.
    """
    again = reproduced(model, cases)
    exact = None if again is None else exact_outputs(again, cases)
    if exact is None:
        return 0.0
    return max((relative_error(output, wanted) for (_, output), wanted in zip(cases, exact, strict=True)), default=0.0)


def unchanged(output: Any) -> Any:
    """An output as it is."""
    return output


def reproduced(model: nn.Module, cases: Cases, read: Callable[[Any], Any] = unchanged) -> nn.Module | None:
    """A copy of a network that gave the same outputs once more, with other random numbers; None if it did not.

    Args:
        model: in eval mode; left as it is.
        cases: inputs, and what was read of the outputs of ``model`` for them.
        read: what of an output it is about.
    """
    again = working_copy(model)
    try:
        with forked_rng():
            torch.manual_seed(torch.initial_seed() + 1)  # float64 draws other numbers from one seed, too
            for inputs, output in reversed(cases):  # the last first: of two outputs in turn it is the other's turn
                if not relative_error(read(output_of(again, inputs)), output) <= output_tolerance(output):
                    return None
    except RuntimeError:
        return None
    return again


def exact_outputs(model: nn.Module, cases: Cases) -> list[Any] | None:
    """The outputs of a network, which becomes one of float64; None where there are none: its code names a dtype."""
    exact = model.double()
    try:
        return [output_of(exact, change_tensors(_double, inputs)) for inputs, _ in cases]
    except RuntimeError:
        return None


class _SaturatingFunctions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Moves what saturating functions give, by one rounding of where they saturate.

    No runtime computes them more exactly: torch has sigmoid(-20) = 2e-9, ONNX Runtime has 0.
    """

    AT_ONE = ("sigmoid", "sigmoid_", "erf", "erf_")
    AT_THEIR_INPUT = ("silu", "silu_", "gelu", "gelu_", "mish", "mish_")

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "overloadpacket", func).__name__
        scale = args[0].detach().clone() if name in self.AT_THEIR_INPUT else 1.0
        y = func(*args, **(kwargs or {}))
        if name in self.AT_ONE + self.AT_THEIR_INPUT and y.is_floating_point():
            y.add_(_signs(y, self._generator) * torch.finfo(y.dtype).eps * scale)
        return y


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, like.shape, generator=generator).to(like) * 2 - 1


def swayed_outputs(model: nn.Module, inputs: Inputs) -> Iterator[Any]:
    """The outputs of ``SWAYS`` copies of a network in which every number moves by one rounding, up or down.

    What its saturating functions give moves by one of where they saturate.

    How far they are apart is how far the network's outputs depend on last digits, in float64, too, where nothing is
    more exact.

    Args:
        model: in eval mode; left as it is.
        inputs: of the model; they move, too.
    """
    generator = torch.Generator().manual_seed(0)

    def moved(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        return x * (1 + _signs(x, generator) * torch.finfo(x.dtype).eps)

    for _ in range(SWAYS):
        other = working_copy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.copy_(moved(parameter))
            for buffer in other.buffers():
                buffer.copy_(moved(buffer).where((buffer != 0) & (buffer.abs() != 1), buffer))  # 0 and 1 are exact
        with _SaturatingFunctions(generator):
            outputs = output_of(other, change_tensors(moved, inputs))
        yield outputs


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x
