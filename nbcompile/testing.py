"""For tests of passes, ours and other people's: what every pass owes, checked in one call."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from nbcompile.core.capture import capture
from nbcompile.core.graph import render
from nbcompile.core.numerics import flatten, relative_error, tolerance
from nbcompile.passes import Pass, PassResult

_NORMS: tuple[type[nn.Module], ...] = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def scramble_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every norm random statistics and affine parameters, in place: a fresh norm is nearly the identity.

    Scales are between 0.5 and 1.5, every fourth negative; variances between 0.5 and 2; shifts and means are normal
    with a deviation of 0.5.

    Args:
        model: its batch norms (SyncBatchNorm too), layer, group, instance and RMS norms are changed.
        seed: of the generator; the global one is left alone.

    Returns:
        ``model`` itself.
    """
    generator = torch.Generator().manual_seed(seed)

    def fill(tensor: Tensor | None, values: Tensor) -> None:
        if tensor is not None:
            tensor.copy_(values)

    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, _NORMS)):
            for key in ("weight", "bias", "running_mean", "running_var"):
                tensor = getattr(norm, key, None)
                if tensor is None:
                    continue
                uniform = torch.rand(tensor.shape, generator=generator)
                if key == "weight":
                    sign = torch.where(torch.rand(tensor.shape, generator=generator) < 0.25, -1.0, 1.0)
                    fill(tensor, sign * (0.5 + uniform))
                elif key == "running_var":
                    fill(tensor, 0.5 + 1.5 * uniform)
                else:
                    fill(tensor, 0.5 * torch.randn(tensor.shape, generator=generator))
    return model


def check_pass(
    pass_: Pass, model: nn.Module, *inputs: Tensor, exact: bool = True, repeatable: bool = True
) -> PassResult:
    """Run ``pass_`` on the graph of a copy of ``model`` and assert what every pass owes.

    That is: the same function on the full output (within :func:`nbcompile.core.numerics.tolerance`), the same shapes,
    dtypes and devices; a ``modified`` that says whether the graph, its modules or their tensors changed; a graph
    that lints; nothing to do in a second run.

    Args:
        pass_: the pass.
        model: what it is run on, in eval mode; left as it was.
        inputs: of the model.
        exact: False for a pass that changes the values on purpose.
        repeatable: False for a pass that must not run twice, as expansion.

    Returns:
        The result of the first run, with its graph.

    Raises:
        AssertionError: saying which of these the pass broke.
    """
    gm = capture(copy.deepcopy(model), len(inputs)).eval()
    before, expected = _snapshot(gm), _run(gm, inputs)
    result = pass_(gm)
    result.gm.graph.lint()
    after, actual = _snapshot(result.gm), _run(result.gm, inputs)
    changed = not _equal(before, after)
    _expect(result.modified == changed, f"{pass_.name}: modified is {result.modified}, but the graph says {changed}")
    for a, b in zip(flatten(actual), flatten(expected), strict=True):
        found, wanted = (a.shape, a.dtype, a.device), (b.shape, b.dtype, b.device)
        _expect(found == wanted, f"{pass_.name}: the output became {found}, from {wanted}")
        limit, error = tolerance(b.dtype), relative_error(a, b) if exact else 0.0
        _expect(error <= limit, f"{pass_.name}: the output changed by {error:.2e}, at most {limit:.0e} is rounding")
    if repeatable:
        again = pass_(result.gm)
        _expect(not again.modified, f"{pass_.name}: a second run still rewrites {', '.join(again.rewritten)}")
        _expect(_equal(after, _snapshot(again.gm)), f"{pass_.name}: a second run changes the graph and does not say so")
    return result


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _run(gm: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Any:
    with torch.no_grad():
        return gm(*(x.clone() for x in inputs))


def _snapshot(gm: fx.GraphModule) -> tuple[str, dict[str, Tensor]]:
    """Nodes, modules and tensors, so that any change shows."""
    tensors = {key: value for key, value in gm.state_dict().items() if isinstance(value, Tensor)}
    return f"{render(gm)}\n{gm}\n{gm.code}", {key: value.clone() for key, value in tensors.items()}


def _equal(a: tuple[str, dict[str, Tensor]], b: tuple[str, dict[str, Tensor]]) -> bool:
    """NaN equals NaN."""
    return (
        a[0] == b[0]
        and list(a[1]) == list(b[1])
        and all(torch.equal(x.nan_to_num(nan=0.1), b[1][key].nan_to_num(nan=0.1)) for key, x in a[1].items())
    )
