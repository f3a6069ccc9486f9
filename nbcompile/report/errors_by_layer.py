"""The error of every layer: two networks run on the same inputs, compared wherever both have a module of one name."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from nbcompile.core.blocks import sites
from nbcompile.core.copies import working_copy
from nbcompile.core.errors import UsageError
from nbcompile.core.example import ExampleInput, as_inputs
from nbcompile.core.running import rehearsal, watched
from nbcompile.report.data import LayerRow
from nbcompile.report.labels import absorbing_norms, layer_label


def per_layer_error(reference: nn.Module, candidate: nn.Module, inputs: ExampleInput) -> tuple[LayerRow, ...]:
    """Compares the outputs of the leaf modules of ``candidate`` with those of equal name in ``reference``.

    Where the shift of a site moved into the norm behind it, the layer's own output differs by a constant per
    channel, by design: its row then has the error behind that norm, and names it in ``measured_at``.

    Args:
        reference: what is taken as true, usually the giant.
        candidate: usually the tiny network; its leaf modules make the rows, in execution order.
        inputs: for both; all outputs of the reference are held at once, so a few examples are better than many.

    Returns:
        One row per layer that ran in both, with ``error``, ``difference`` and ``measured_at`` filled in. A layer
        called several times gets the worst of its calls. Where shapes differ the numbers are NaN; where the
        absorbing norm could not be seen they are None.

    Raises:
        UsageError: if the two have no module name in common.
        PreconditionError: if one of them does not run on ``inputs``.
    """
    reference, candidate = working_copy(reference), working_copy(candidate)
    known = {name for name, _ in reference.named_modules()}
    shared = {
        name: module
        for name, module in candidate.named_modules()
        if name in known and name and not any(module.children())
    }
    if not shared:
        raise UsageError("per_layer_error compares modules of equal name, and these two networks share none")

    truth: dict[str, list[Tensor]] = {}
    errors: dict[str, tuple[float, float]] = {}

    def remember(name: str, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            truth.setdefault(name, []).append(output.clone())  # in-place activations overwrite what they read

    def compare(name: str, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and truth.get(name):
            error = _difference(truth[name].pop(0), output)
            errors[name] = _worse(errors.get(name, error), error)

    for model, see in ((reference, remember), (candidate, compare)):
        named = [(name, module) for name, module in model.named_modules() if name in shared]
        with watched(named, leave=see), rehearsal(model, as_inputs(inputs)) as (buffers, copies):
            functional_call(model, buffers, copies)
    moved = {name: norms[0] for name, block in sites(reference).items() if (norms := absorbing_norms(name, block))}
    return tuple(_row(name, layer_label(shared[name]), errors, moved) for name in errors)


def _row(name: str, kind: str, errors: Mapping[str, tuple[float, float]], moved: Mapping[str, str]) -> LayerRow:
    if name in moved and moved[name] not in errors:  # a norm that is no module, or that only one of the two has
        return LayerRow(name=name, kind=kind)
    error, difference = errors[moved.get(name, name)]
    return LayerRow(name=name, kind=kind, error=error, difference=difference, measured_at=moved.get(name, ""))


def _difference(truth: Tensor, output: Tensor) -> tuple[float, float]:
    """Largest difference: over the largest true value, and by itself; computed in float64."""
    if truth.shape != output.shape:
        return math.nan, math.nan
    if truth.numel() == 0:
        return 0.0, 0.0
    largest = (truth.double() - output.double()).abs().max().item()
    scale = truth.double().abs().max().item()
    if scale == 0.0:
        return (math.inf if largest else 0.0), largest
    return largest / scale, largest


def _worse(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    return first if math.isnan(first[0]) or second <= first else second  # NaN is worse than any number
