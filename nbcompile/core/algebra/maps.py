"""What the algebra is about: an affine map on feature maps, and its geometry, which is all but the numbers.

Whether two maps merge exactly, and what the result looks like, is decided on geometries; so a plan needs no tensors.
"""

from dataclasses import dataclass
from math import prod

from torch import Tensor


class NotExact(ValueError):  # noqa: N818 - a verdict, not an error: passes turn it into a skip
    """The merge would not be border-exact; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """An affine map without its numbers.

    Attributes:
        inputs: input channels.
        outputs: output channels.
        kernel: taps per spatial axis; empty for a linear layer, like the fields below.
        stride: per spatial axis.
        padding: ``(low, high)`` per spatial axis, >= 0; a transposed map crops its output by so much instead.
        dilation: per spatial axis.
        groups: channel groups.
        bias: whether it adds one.
        padding_mode: ``zeros``, ``reflect``, ``replicate`` or ``circular``; ``zeros`` where nothing is padded.
        transposed: whether taps say where an input goes to, instead of where an output comes from.
        output_padding: positions after the last, per spatial axis of a transposed map; else empty.
        filled: whether it pads with a value that is not zero, which no one layer does.
    """

    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    bias: bool
    padding_mode: str = "zeros"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    filled: bool = False

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def pads(self) -> bool:
        """Whether it reads positions outside its input; a transposed map never does."""
        return not self.transposed and any(low or high for low, high in self.padding)

    @property
    def pointwise(self) -> bool:
        """Whether output position ``i`` is input position ``i``, channels mixed: it commutes with any rearrangement."""
        return not (self.transposed or self.pads) and all(n == 1 for n in (*self.kernel, *self.stride))

    @property
    def reach(self) -> tuple[int, ...]:
        """Distance from the first tap to the last, in input positions (output positions if transposed), per axis."""
        return tuple(d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True))

    @property
    def weights(self) -> int:
        """Elements of the weight."""
        return self.outputs * (self.inputs // self.groups) * prod(self.kernel)

    @property
    def params(self) -> int:
        """Elements of weight and bias."""
        return self.weights + (self.outputs if self.bias else 0)

    def sizes(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Spatial output size for a spatial input ``size``."""
        axes = zip(size, self.reach, self.stride, self.padding, strict=True)
        if self.transposed:
            whole = [(n - 1) * s + reach + 1 - low - high for n, reach, s, (low, high) in axes]
            return tuple(n + more for n, more in zip(whole, self.output_padding, strict=True))
        return tuple((n + low + high - reach - 1) // s + 1 for n, reach, s, (low, high) in axes)


@dataclass(frozen=True)
class AffineMap:
    """A linear operator on feature maps, the same at every position, plus a bias.

    It acts on channel dimension ``-(axes + 1)`` of a tensor with any leading dimensions: a linear layer is a map with
    no spatial axes.

    Attributes:
        weight: ``(C_out, C_in // groups, *kernel)``, also of a transposed map.
        bias: ``(C_out,)``; None means zeros.
        stride: as of :class:`Geometry`, like the fields below.
        padding: ``(low, high)`` per spatial axis.
        dilation: one per spatial axis.
        groups: channel groups.
        padding_mode: of what is padded.
        transposed: whether taps say where an input goes to.
        output_padding: one per spatial axis of a transposed map, else empty.
        pad_value: ``(C_in,)``, what ``zeros`` padding is filled with, in the dtype the model computed it in; None
            means zeros, and stands where nothing is padded.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    padding_mode: str = "zeros"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    pad_value: Tensor | None = None

    @classmethod
    def of(cls, geometry: Geometry, weight: Tensor, bias: Tensor | None, pad_value: Tensor | None) -> "AffineMap":
        """The map of this geometry with these numbers."""
        return cls(
            weight=weight,
            bias=bias,
            stride=geometry.stride,
            padding=geometry.padding,
            dilation=geometry.dilation,
            groups=geometry.groups,
            padding_mode=geometry.padding_mode,
            transposed=geometry.transposed,
            output_padding=geometry.output_padding,
            pad_value=pad_value,
        )

    @property
    def geometry(self) -> Geometry:
        """The map without its numbers."""
        return Geometry(
            inputs=self.weight.shape[1] * self.groups,
            outputs=self.weight.shape[0],
            kernel=self.kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            bias=self.bias is not None,
            padding_mode=self.padding_mode,
            transposed=self.transposed,
            output_padding=self.output_padding,
            filled=self.pad_value is not None and bool(self.pad_value.any()),
        )

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel size per spatial axis."""
        return tuple(self.weight.shape[2:])

    @property
    def pads(self) -> bool:
        """Whether it reads positions outside its input; a transposed map never does."""
        return not self.transposed and any(low or high for low, high in self.padding)


def from_transposed_weight(weight: Tensor, groups: int) -> Tensor:
    """The weight of a transposed map from torch's.

    Args:
        weight: ``(C_in, C_out // groups, *kernel)``, as ``nn.ConvTranspose2d`` has it.
        groups: channel groups.

    Returns:
        ``(C_out, C_in // groups, *kernel)``, the taps in the same order.
    """
    blocks = weight.reshape(groups, -1, *weight.shape[1:])
    return blocks.transpose(1, 2).flatten(0, 1)


def to_transposed_weight(weight: Tensor, groups: int) -> Tensor:
    """The inverse of :func:`from_transposed_weight`, which is the same exchange."""
    return from_transposed_weight(weight, groups)
