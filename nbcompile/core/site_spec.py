"""What an expansion block is to be: the kind, and the layers it is made of, first to last.

Source: NetBooster (arXiv 2306.13586) sec. 3.3; Table 4 for the kinds.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from nbcompile.core.activations import Activation
from nbcompile.core.layers import LayerSpec

BLOCKS = ("inverted-residual", "bottleneck", "basic")


@dataclass(frozen=True, kw_only=True)
class SiteSpec:
    """Everything that rebuilds a block, JSON-able.

    Attributes:
        name: qualified name of the site when it was expanded.
        layer: the layer that was replaced.
        block: one of :data:`BLOCKS`; a linear layer becomes two whatever the kind.
        ratio: hidden width over the layer's input channels, >= 1.
        preserve: whether the original layer stays as a parallel branch.
        activation: of the inserted stages.
        inner: what follows each inserted layer: ``norm`` (batch norm), ``bias`` (the layers have biases), or
            ``scale`` (per-channel factors and no bias anywhere, where no shift could be absorbed).
        eps: of the inner norms.
        momentum: of the inner norms; None for a cumulative average.
        sync: whether the inner norms are SyncBatchNorm.
        pad_first: whether a k×k layer's padding moves to a first 1×1 layer; else the k×k layer comes first.
        absorbers: keys of the running means that take the merged shift; empty where the layer's own bias does.
        pattern: the pattern that located the site, or ``named``.
    """

    name: str
    layer: LayerSpec
    block: str
    ratio: int
    preserve: bool
    activation: Activation
    inner: str
    eps: float = 1e-5
    momentum: float | None = 0.1
    sync: bool = False
    pad_first: bool = False
    absorbers: tuple[str, ...] = ()
    pattern: str = "named"

    def __deepcopy__(self, memo: dict[int, Any]) -> "SiteSpec":
        return self  # it cannot change

    @property
    def kind(self) -> "SiteSpec":
        """What blocks that are alike have in common."""
        return replace(self, name="", absorbers=(), pattern="")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "SiteSpec":
        """The inverse of :meth:`to_json`; a file may say anything.

        Raises:
            ValueError: if no such block can be.
        """
        fields = dict(data)
        fields["layer"] = LayerSpec.from_json(fields["layer"])
        fields["activation"] = Activation(**fields["activation"])
        fields["absorbers"] = tuple(fields["absorbers"])
        spec = cls(**fields)
        numbers = (spec.eps, 0.0 if spec.momentum is None else spec.momentum)
        if (
            not all(isinstance(text, str) for text in (spec.name, spec.pattern, *spec.absorbers))
            or spec.block not in BLOCKS
            or spec.inner not in ("norm", "bias", "scale")
            or type(spec.ratio) is not int
            or spec.ratio < 1
            or not all(type(flag) is bool for flag in (spec.preserve, spec.sync, spec.pad_first))
            or not all(type(number) in (int, float) for number in numbers)
        ):
            raise ValueError(f"no block is '{spec.block}' with inner '{spec.inner}' and ratio {spec.ratio}")
        return spec


def planned_layers(spec: SiteSpec) -> list[LayerSpec]:
    """The layers of a block, first to last."""
    target = spec.layer
    hidden = spec.ratio * target.inputs
    ends = spec.inner == "bias"
    last_bias = target.bias and not spec.preserve
    if target.kind == "Linear":
        return [replace(target, outputs=hidden, bias=ends), replace(target, inputs=hidden, bias=last_bias)]
    ones, zeros = (1,) * target.axes, (0,) * target.axes
    point = replace(target, kernel=ones, stride=ones, padding=zeros, dilation=ones, bias=ends, padding_mode="zeros")
    point = replace(point, kind=f"Conv{target.axes}d", output_padding=())
    into = replace(point, outputs=hidden)
    across = replace(point, inputs=hidden, outputs=hidden)
    out = replace(point, inputs=hidden, bias=last_bias)
    if spec.block == "inverted-residual":
        across = replace(across, groups=hidden)
    if spec.block == "basic":
        return [replace(target, outputs=hidden, bias=ends), out]
    symmetric = all(low == high for low, high in target.padding_sides)
    pads_first = spec.pad_first and symmetric and not target.transposed  # sides alike, and padded rather than cropped
    if not (target.pointwise or pads_first):
        first = replace(target, outputs=hidden, bias=ends)
        if spec.block == "inverted-residual":
            first = replace(first, groups=target.inputs)
        return [first, across, out]
    padding = tuple(low for low, _ in target.padding_sides)
    into = replace(into, padding=padding, padding_mode=target.padding_mode)
    if target.pointwise:
        return [replace(into, stride=target.stride), across, out]
    across = replace(across, kernel=target.kernel, stride=target.stride, dilation=target.dilation)
    return [into, across, out]
