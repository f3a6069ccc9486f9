"""Activations that can be linearised: ``f_a(x) = (1 - a) * phi(x) + a * x`` with slope ``a`` from 0 to 1.

One formula serves all. For ReLU it is the paper's ``max(a * x, x)`` (NetBooster Eq. 2), for ReLU6 it has slope ``a``
below 0 *and* above 6 (``min(max(a * x, x), 6)`` would not end as the identity), for LeakyReLU the slope runs from its
own to 1. It is computed by ``torch.lerp``, which is exact at both ends: ``a = 0`` gives ``phi`` and ``a = 1`` gives
``x``, bit by bit for finite ``x``.

Memory is that of torch's own activations: piecewise-linear ones keep only their output for backward (which piece an
element was on can be read from it, for every slope), smooth ones only their input.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

aten = torch.ops.aten


@dataclass(frozen=True)
class _Phi:
    """An activation and its derivative.

    Attributes:
        forward: ``phi(x, parameter)``.
        backward: ``gradient, kept, parameter -> phi'(x) * gradient``.
        keeps_output: what is kept for backward: the output, else the input.
    """

    forward: Callable[[Tensor, Any], Tensor]
    backward: Callable[[Tensor, Tensor, Any], Tensor]
    keeps_output: bool


_PHI = {
    "relu": _Phi(lambda x, _: F.relu(x), lambda g, y, _: aten.threshold_backward(g, y, 0), True),
    "relu6": _Phi(lambda x, _: F.relu6(x), lambda g, y, _: aten.hardtanh_backward(g, y, 0, 6), True),
    "leaky_relu": _Phi(lambda x, n: F.leaky_relu(x, n), lambda g, y, n: aten.leaky_relu_backward(g, y, n, True), True),
    "hardswish": _Phi(lambda x, _: F.hardswish(x), lambda g, x, _: aten.hardswish_backward(g, x), False),
    "silu": _Phi(lambda x, _: F.silu(x), lambda g, x, _: aten.silu_backward(g, x), False),
    "gelu": _Phi(
        lambda x, how: F.gelu(x, approximate=how),
        lambda g, x, how: aten.gelu_backward(g, x, approximate=how),
        False,
    ),
}

KNOWN_NAMES = frozenset(_PHI)
KNOWN = "ReLU, ReLU6, LeakyReLU, Hardswish, SiLU, GELU"


@dataclass(frozen=True)
class Activation:
    """Which activation: a name, and its one parameter.

    Attributes:
        name: ``relu``, ``relu6``, ``leaky_relu``, ``hardswish``, ``silu`` or ``gelu``.
        parameter: the negative slope of ``leaky_relu``, the approximation of ``gelu``; else None.
    """

    name: str
    parameter: float | str | None = field(default=None)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Activation":
        return self  # it cannot change

    def __post_init__(self) -> None:
        if self.name not in _PHI:
            raise ValueError(f"activation '{self.name}' is none that can be linearised: {KNOWN}")
        wanted: dict[str, type] = {"leaky_relu": float, "gelu": str}
        if not isinstance(self.parameter, wanted.get(self.name, type(None))):
            raise ValueError(f"activation '{self.name}' cannot have parameter {self.parameter!r}")
        if isinstance(self.parameter, float) and not self.parameter >= 0:
            raise ValueError(f"a negative slope of {self.parameter} turns the sign: the output does not tell the piece")

    def bend(self, x: Tensor, slope: float) -> Tensor:
        """The activation of ``x`` at ``slope``, without arithmetic at the ends: ``x`` itself at 1; not recorded."""
        if slope == 1:
            return x
        y = _PHI[self.name].forward(x, self.parameter)
        return y if slope == 0 else y.lerp_(x, slope)

    def bend_gradient(self, gradient: Tensor, x: Tensor, slope: float) -> Tensor:
        """The gradient of ``x`` by that of what :meth:`bend` made of it."""
        if slope == 1:
            return gradient
        through = _PHI[self.name].backward(gradient, x, self.parameter)  # the input tells the piece, too
        return through if slope == 0 else through.lerp_(gradient, slope)

    def blend(self, x: Tensor, slope: float | Tensor) -> Tensor:
        """The activation of ``x`` at ``slope``, by functions that can be differentiated in every way."""
        return torch.lerp(_PHI[self.name].forward(x, self.parameter), x, slope)

    @classmethod
    def of(cls, module: nn.Module) -> "Activation | None":
        """The activation that ``module`` is, or None."""
        match module:
            case nn.ReLU6():
                return cls("relu6")
            case nn.ReLU():
                return cls("relu")
            case nn.LeakyReLU() if module.negative_slope >= 0:  # below 0 the output does not tell the piece
                return cls("leaky_relu", float(module.negative_slope))
            case nn.Hardswish():
                return cls("hardswish")
            case nn.SiLU():
                return cls("silu")
            case nn.GELU():
                return cls("gelu", module.approximate)
            case nn.Hardtanh() if (module.min_val, module.max_val) == (0, 6):
                return cls("relu6")
        return None


class _Linearised(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor, activation: Activation) -> Tensor:
        phi = _PHI[activation.name]
        weight = slope.to(x.dtype)
        y = phi.forward(x, activation.parameter).lerp_(x, weight)
        ctx.save_for_backward(y if phi.keeps_output else x, weight)
        ctx.activation = activation
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        kept, weight = ctx.saved_tensors
        phi = _PHI[ctx.activation.name]
        through = phi.backward(gradient, kept, ctx.activation.parameter)
        return through.lerp_(gradient, weight), None, None


def linearised(x: Tensor, slope: Tensor, name: str, parameter: float | str | None = None) -> Tensor:
    """The activation ``name`` at ``slope``: 0 is the activation as it was, 1 the identity.

    Args:
        x: any shape, floating point.
        slope: 0-dim, in [0, 1]; no gradient flows to it.
        name: see :class:`Activation`.
        parameter: see :class:`Activation`.

    Returns:
        A new tensor of the shape and dtype of ``x``.

    Source: NetBooster (arXiv 2306.13586) Eq. 1-2; both corners of ReLU6: facebookresearch/DepthShrinker.
    """
    activation = Activation(name, parameter)
    if not torch.compiler.is_compiling() and is_transformed():
        return activation.blend(x, slope.to(x.dtype))
    result: Tensor = _Linearised.apply(x, slope, activation)
    return result


def is_transformed() -> bool:
    """Whether code runs under torch.func or forward-mode AD, which see no further than torch's own functions."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
