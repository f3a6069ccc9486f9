"""Between layers and the algebra: what a layer is (:class:`LayerSpec`), and its affine map."""

import copy
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

from nbcompile.core.algebra import AffineMap, from_transposed_weight, frozen_norm, per_channel, to_transposed_weight

CONVOLUTIONS: tuple[type[_ConvNd], ...] = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_CLASSES: dict[str, type[nn.Module]] = {cls.__name__: cls for cls in (*CONVOLUTIONS, nn.Linear)}
_AXES = {cls.__name__: int(cls.__name__[-2]) for cls in CONVOLUTIONS}
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
FORWARDS = ("forward", "_conv_forward", "__call__")
"""Methods that say what a module computes: a class that has one of its own may compute anything."""


class Scale(nn.Module):
    """Multiplies every channel by a learnt factor: what stands in for a norm where no shift can be absorbed.

    Args:
        channels: number of channels, dimension 1 of the input.
        axes: number of spatial axes.
    """

    def __init__(self, channels: int, axes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, *(1,) * axes))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, *spatial)`` to the same shape."""
        return x * self.weight


class Template:
    """A copy of a layer without data, hidden from module trees; copies share it, since nothing changes it.

    Args:
        layer: left as it is.
    """

    def __init__(self, layer: nn.Module) -> None:
        memo: dict[int, Any] = {}
        for parameter in layer.parameters():
            memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        self.layer = copy.deepcopy(layer, memo)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Template":
        return self


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """The hyper-parameters of a convolution or linear layer, JSON-able.

    Attributes:
        kind: ``Conv1d``, ``Conv2d``, ``Conv3d``, ``ConvTranspose1d``, …, or ``Linear``.
        inputs: input channels or features.
        outputs: output channels or features.
        bias: whether it has one.
        kernel: per spatial axis; empty for a linear layer, like the fields below.
        stride: per spatial axis.
        padding: per spatial axis, or ``same`` / ``valid``.
        dilation: per spatial axis.
        groups: channel groups.
        padding_mode: as of ``nn.Conv2d``.
        output_padding: per spatial axis of a transposed convolution, else empty.
    """

    kind: str
    inputs: int
    outputs: int
    bias: bool
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"
    output_padding: tuple[int, ...] = ()

    @classmethod
    def of(cls, layer: nn.Module) -> "LayerSpec":
        """The spec of a convolution or linear layer."""
        if isinstance(layer, nn.Linear):
            return cls(kind="Linear", inputs=layer.in_features, outputs=layer.out_features, bias=layer.bias is not None)
        conv = cast(_ConvNd, layer)
        return cls(
            kind=next(name for name, known in _CLASSES.items() if isinstance(conv, known)),
            inputs=conv.in_channels,
            outputs=conv.out_channels,
            bias=conv.bias is not None,
            kernel=tuple(conv.kernel_size),
            stride=tuple(conv.stride),
            padding=conv.padding if isinstance(conv.padding, str) else tuple(int(p) for p in conv.padding),
            dilation=tuple(conv.dilation),
            groups=conv.groups,
            padding_mode=conv.padding_mode,
            output_padding=tuple(conv.output_padding) if conv.transposed else (),
        )

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "LayerSpec":
        """The inverse of :meth:`to_json`; a file may say anything.

        Raises:
            ValueError: if no such layer can be.
        """
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
        spec = cls(**fields)
        axes = _AXES.get(spec.kind, 0)
        sizes = (spec.inputs, spec.outputs, spec.groups, *spec.kernel, *spec.stride, *spec.dilation)
        pads = () if isinstance(spec.padding, str) else spec.padding
        if (
            spec.kind not in _CLASSES
            or {len(spec.kernel), len(spec.stride), len(spec.dilation)} != {axes}
            or len(spec.output_padding) != (axes if spec.transposed else 0)
            or not (spec.padding in ("same", "valid") or len(pads) == axes)
            or any(type(n) is not int or n < 1 for n in sizes)
            or any(type(n) is not int or n < 0 for n in (*pads, *spec.output_padding))
            or type(spec.bias) is not bool
            or spec.padding_mode not in ("zeros", "reflect", "replicate", "circular")
            or (spec.transposed and (isinstance(spec.padding, str) or spec.padding_mode != "zeros"))
            or any(n >= max(spec.stride[i], spec.dilation[i]) for i, n in enumerate(spec.output_padding))
        ):
            raise ValueError(f"no layer is {str(spec)[:200]}")
        return spec

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution."""
        return self.kind.startswith("ConvTranspose")

    @property
    def pointwise(self) -> bool:
        """Whether it reads one input position per output position."""
        return not self.transposed and all(k == 1 for k in self.kernel)

    @property
    def depthwise(self) -> bool:
        """Whether every channel has its own filter."""
        return self.axes > 0 and self.groups == self.inputs > 1

    @property
    def padding_sides(self) -> tuple[tuple[int, int], ...]:
        """``(low, high)`` per spatial axis; what a transposed convolution crops."""
        if self.padding == "valid":
            return ((0, 0),) * self.axes
        if isinstance(self.padding, str):  # "same": what cannot be halved goes to the high side, as torch does
            total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
            return tuple((t // 2, t - t // 2) for t in total)
        return tuple((p, p) for p in self.padding)

    def build(self, like: Tensor | None = None) -> nn.Module:
        """A new layer with torch's own initialisation, on the device and in the dtype of ``like``."""
        more: dict[str, Any] = {} if like is None else {"device": like.device, "dtype": like.dtype}
        if self.kind == "Linear":
            return nn.Linear(self.inputs, self.outputs, bias=self.bias, **more)
        if self.transposed:
            more["output_padding"] = self.output_padding
        return cast(type[nn.Conv2d], _CLASSES[self.kind])(
            self.inputs,
            self.outputs,
            cast(Any, self.kernel),
            stride=cast(Any, self.stride),
            padding=cast(Any, self.padding),
            dilation=cast(Any, self.dilation),
            groups=self.groups,
            bias=self.bias,
            padding_mode=cast(Any, self.padding_mode),
            **more,
        )


def why_changed(module: nn.Module) -> str | None:
    """Why this very module may compute something else than its class does, or None."""
    if parametrize.is_parametrized(module):
        return "its weight is computed by a parametrization; remove it first"
    return why_more_runs(module)


def why_more_runs(module: nn.Module) -> str | None:
    """Why more may run when this very module is called than the forward of its class, or None."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "it carries hooks, which would be lost; remove them first"
    if any(name in vars(module) for name in FORWARDS):
        return "its forward was replaced on the object itself; undo that first"
    return None


def why_no_layer(module: nn.Module) -> str | None:
    """Why ``module`` is not a convolution or linear layer whose weight says everything, or None if it is."""
    base = next((cls for cls in _CLASSES.values() if isinstance(module, cls)), None)
    kind = type(module).__name__
    if base is None:
        return f"it is a {kind}, not a convolution or linear layer"
    if any(getattr(type(module), name, None) is not getattr(base, name, None) for name in FORWARDS):
        return f"its class {kind} computes something of its own"
    weight = module._parameters.get("weight")  # not module.weight, which is a proxy while fx traces
    if weight is None:
        return "its weight is computed by a parametrization; remove it first"
    if reason := why_changed(module):
        return reason
    if not weight.dtype.is_floating_point:
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}, not floating point"
    return None


def per_axis(value: Any, axes: int) -> tuple[int, ...]:
    """One value an axis, as torch's layers understand what they are given: a number, or a sequence of one or of all."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * axes if len(values) == 1 else values


def memory_format(weight: Tensor) -> torch.memory_format:
    """Channels-last if ``weight`` is stored so (and not, ambiguously, both ways)."""
    wanted = _FORMATS.get(weight.ndim)
    if wanted is not None and not weight.is_contiguous() and weight.is_contiguous(memory_format=wanted):
        return wanted
    return torch.contiguous_format


def lift(layer: nn.Module, dtype: torch.dtype, axes: int) -> AffineMap:
    """The affine map of a layer in eval mode.

    Args:
        layer: a convolution, transposed or not, a linear layer, a batch or instance norm that normalises by its
            running statistics, or a :class:`Scale`.
        dtype: of the map; float64 where the result is to be rounded once.
        axes: number of spatial axes of the feature maps.
    """

    # torch 2.9 compiles no union of types: this one runs inside of `torch.compile`, in a collapsed block.
    def cast_(x: "Tensor | None") -> "Tensor | None":
        return None if x is None else x.to(dtype)

    if isinstance(layer, Scale):
        return per_channel(layer.weight.flatten().to(dtype), None, axes)
    if isinstance(layer, (_BatchNorm, _InstanceNorm)):
        mean, var = cast(Tensor, layer.running_mean).to(dtype), cast(Tensor, layer.running_var).to(dtype)
        return frozen_norm(mean, var, cast_(layer.weight), cast_(layer.bias), layer.eps, axes)
    spec = LayerSpec.of(layer)
    weight, bias = cast(Tensor, layer.weight).to(dtype), cast_(cast("Tensor | None", layer.bias))
    return AffineMap(
        weight=from_transposed_weight(weight, spec.groups) if spec.transposed else weight,
        bias=bias,
        stride=spec.stride,
        padding=spec.padding_sides,
        dilation=spec.dilation,
        groups=spec.groups,
        padding_mode=spec.padding_mode if any(low or high for low, high in spec.padding_sides) else "zeros",
        transposed=spec.transposed,
        output_padding=spec.output_padding,
    )


def stored_weight(m: AffineMap) -> Tensor:
    """The weight of ``m`` as torch's layer holds it."""
    return to_transposed_weight(m.weight, m.groups) if m.transposed else m.weight
