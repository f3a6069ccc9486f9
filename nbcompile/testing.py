"""For tests of passes, ours and other people's: what every pass owes, checked in one call."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from nbcompile.core.example import change_tensors
from nbcompile.core.graph.nodes import render_graph
from nbcompile.core.numerics import flatten, relative_error, tolerance
from nbcompile.core.running import output_of
from nbcompile.core.tracing.capture import capture
from nbcompile.passes import Pass, PassResult

_NORMS: tuple[type[nn.Module], ...] = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def scramble_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every norm random statistics and affine parameters, in place: a fresh norm is nearly the identity.

    Scales are between 0.5 and 1.5, every fourth negative; variances between 0.5 and 2; shifts and means are normal
    with a deviation of 0.5.

    Args:
        model: changed are torch's batch (SyncBatchNorm too), layer, group, instance and RMS norms, and the norms that
            libraries write for themselves: what is called a norm and has a vector ``weight`` or ``running_var``, frozen
            ones included.
        seed: of the generator; the global one is left alone.

    Returns:
        ``model`` itself.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in filter(_is_norm, model.modules()):
            for key in ("weight", "bias", "running_mean", "running_var"):
                tensor = getattr(norm, key, None)
                if tensor is None:
                    continue
                uniform = torch.rand(tensor.shape, generator=generator)
                if key == "weight":
                    tensor.copy_(_signed(uniform, generator))
                elif key == "running_var":
                    tensor.copy_(0.5 + 1.5 * uniform)
                else:
                    tensor.copy_(0.5 * torch.randn(tensor.shape, generator=generator))
    return model


def enliven_(model: nn.Module, *inputs: Any, seed: int = 0) -> nn.Module:
    """Make every tensor of a fresh network matter, in place: an error in what is zero or dies out cannot be seen.

    Norms are scrambled; other parameters whose elements are all equal become random (biases of zero, layer scales of
    1e-6); then the network is run, and running statistics become those of the activations that arrive, with variances
    of 0.5 to 2 times theirs: purely random ones let the signal of deep networks die or explode. Means are off by one
    deviation and more, so that most units are active: random networks are chaotic otherwise, and a hundred layers make
    1e-5 of the rounding in the first.

    Args:
        model: is put in eval mode.
        inputs: of the model; more than one value per channel should reach each batch norm, whose statistics else stay
            random.
        seed: of the generator; the global one is left alone.

    Returns:
        ``model`` itself.
    """
    scramble_(model, seed)
    generator = torch.Generator().manual_seed(seed)
    norms = list(filter(_is_norm, model.eval().modules()))
    of_norms = {id(p) for norm in norms for p in norm.parameters(recurse=False)}
    with torch.no_grad():
        for p in model.parameters():
            if id(p) not in of_norms and p.is_floating_point() and p.numel() and bool((p == p.flatten()[0]).all()):
                zero = bool(p.flatten()[0] == 0)
                normal, uniform = torch.randn(p.shape, generator=generator), torch.rand(p.shape, generator=generator)
                p.copy_(0.1 * normal if zero else _signed(uniform, generator))
        moved = partial(_settle, generator)
        tracking = [norm for norm in norms if isinstance(getattr(norm, "running_var", None), Tensor)]
        handles = [norm.register_forward_pre_hook(moved) for norm in tracking]
        try:
            model(*change_tensors(torch.clone, inputs))
        finally:
            for handle in handles:
                handle.remove()
    return model


def _is_norm(module: nn.Module) -> bool:
    """One of torch's, or by its looks one of a library's own."""
    if isinstance(module, _NORMS):
        return True
    vector = next((v for k in ("running_var", "weight") if isinstance(v := getattr(module, k, None), Tensor)), None)
    return "norm" in type(module).__name__.lower() and vector is not None and vector.ndim == 1


def _signed(uniform: Tensor, generator: torch.Generator) -> Tensor:
    """Between 0.5 and 1.5, every fourth negative."""
    return torch.where(torch.rand(uniform.shape, generator=generator) < 0.25, -1.0, 1.0) * (0.5 + uniform)


def _settle(generator: torch.Generator, norm: nn.Module, args: tuple[Tensor, ...]) -> None:
    """The statistics of what arrives, moved at random; where it has one value per channel, what they were."""
    x = args[0].transpose(0, 1).flatten(1).double()
    if x.shape[1] < 2:
        return
    mean, var = x.mean(1), x.var(1)
    var = var.clamp(min=max(0.1 * float(var.mean()), 1e-6))  # a channel that is dead here need not be so elsewhere
    shift, factor = (draw(mean.shape, generator=generator) for draw in (torch.randn, torch.rand))
    scale = getattr(norm, "weight", None)
    down = torch.ones_like(mean) if scale is None else scale.sign()  # so that what comes out goes up
    norm.get_buffer("running_mean").copy_(mean - down * (1 + 0.5 * shift) * var.sqrt())
    norm.get_buffer("running_var").copy_(var * (0.5 + 1.5 * factor))


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
    gm = capture(copy.deepcopy(model), inputs).eval()
    before, expected = _snapshot(gm), _run(gm, inputs)
    result = pass_(gm)
    result.gm.graph.lint()
    after, actual = _snapshot(result.gm), _run(result.gm, inputs)
    changed = not _equal(before, after)
    _expect(result.modified == changed, f"{pass_.name}: modified is {result.modified}, but the graph says {changed}")
    for a, b in zip(flatten(actual), flatten(expected), strict=True):
        now, wanted = (a.shape, a.dtype, a.device), (b.shape, b.dtype, b.device)
        _expect(now == wanted, f"{pass_.name}: the output became {now}, from {wanted}")
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
    return output_of(gm, inputs)


def _snapshot(gm: fx.GraphModule) -> tuple[str, dict[str, Tensor]]:
    """Nodes, modules and tensors, so that any change shows."""
    tensors = {key: value for key, value in gm.state_dict().items() if isinstance(value, Tensor)}
    return f"{render_graph(gm)}\n{gm}\n{gm.code}", {key: value.clone() for key, value in tensors.items()}


def _equal(a: tuple[str, dict[str, Tensor]], b: tuple[str, dict[str, Tensor]]) -> bool:
    """NaN equals NaN."""
    return (
        a[0] == b[0]
        and list(a[1]) == list(b[1])
        and all(torch.equal(x.nan_to_num(nan=0.1), b[1][key].nan_to_num(nan=0.1)) for key, x in a[1].items())
    )
