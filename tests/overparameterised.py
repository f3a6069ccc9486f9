"""The blocks of the over-parameterisation literature, written after the papers, each with the one layer it stands for.

Every block is a plain module that is affine in eval mode. ``deploy()`` gives a fresh layer of the geometry that the
paper deploys: its hyper-parameters, MACs and params are what ``fuse`` must reach.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """A block and what it deploys as.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: of the deployed layer, square and odd.
        stride: of the deployed layer.
        dilation: of the deployed layer.
        groups: of the deployed layer.
        padding: of the deployed layer; None keeps the size at stride 1.
        bias: whether the deployed layer has one: norms make one.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        padding: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.groups = inputs, outputs, groups
        self.stride, self.dilation, self.bias = stride, dilation, bias
        self.k = kernel
        self.pad = dilation * (kernel // 2) if padding is None else padding
        self.keeps_shape = inputs == outputs and stride == 1 and self.pad == dilation * (kernel // 2)

    def conv(self, kernel: int | tuple[int, int], padding: int | tuple[int, int] = 0, bias: bool = False) -> nn.Conv2d:
        return nn.Conv2d(self.inputs, self.outputs, kernel, self.stride, padding, self.dilation, self.groups, bias=bias)

    def conv_norm(self, kernel: int | tuple[int, int], padding: int | tuple[int, int] = 0) -> nn.Sequential:
        return nn.Sequential(self.conv(kernel, padding), nn.BatchNorm2d(self.outputs))

    def deploy(self) -> nn.Module:
        """A fresh layer of the geometry that the paper deploys."""
        return self.conv(self.k, self.pad, self.bias)


class RepVGG(Block):
    """3×3 + 1×1 + identity, each with a norm (arXiv 2101.03697)."""

    def __init__(self, inputs: int, outputs: int, **geometry: int) -> None:
        super().__init__(inputs, outputs, 3, **geometry)  # type: ignore[arg-type]
        self.dense, self.point = self.conv_norm(3, self.pad), self.conv_norm(1)
        self.skip = nn.BatchNorm2d(inputs) if self.keeps_shape else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.point(x)
        return y if self.skip is None else y + self.skip(x)


class ACNet(Block):
    """k×k + 1×k + k×1 (arXiv 1908.03930); with less padding than k // 2 the flat branches see a cropped input."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, **geometry: int) -> None:
        super().__init__(inputs, outputs, kernel, **geometry)  # type: ignore[arg-type]
        short = self.pad - self.dilation * (kernel // 2)
        self.crop = max(-short, 0)
        self.square = self.conv_norm(kernel, self.pad)
        self.row = self.conv_norm((1, kernel), (max(short, 0), self.pad))
        self.column = self.conv_norm((kernel, 1), (self.pad, max(short, 0)))

    def forward(self, x: Tensor) -> Tensor:
        row = column = x
        if self.crop:
            row, column = x[:, :, self.crop : -self.crop, :], x[:, :, :, self.crop : -self.crop]
        return self.square(x) + self.row(row) + self.column(column)


class RingPad(nn.Module):
    """A norm, then padding with what the norm makes of zero: written onto the ring, as DBB's authors do."""

    def __init__(self, channels: int, pad: int, affine: bool = True) -> None:
        super().__init__()
        self.norm, self.pad = nn.BatchNorm2d(channels, affine=affine), pad

    def of_zero(self) -> Tensor:
        scale = (self.norm.running_var + self.norm.eps).rsqrt()
        if not self.norm.affine:
            return -self.norm.running_mean * scale
        return self.norm.bias - self.norm.running_mean * self.norm.weight * scale

    def forward(self, x: Tensor) -> Tensor:
        y, p = F.pad(self.norm(x), [self.pad] * 4), self.pad
        ring = self.of_zero().view(1, -1, 1, 1)
        y[:, :, :p, :] = ring
        y[:, :, -p:, :] = ring
        y[:, :, :, :p] = ring
        y[:, :, :, -p:] = ring
        return y


class ShiftPad(RingPad):
    """The same without writing in place: take the shift away, pad with zeros, give it back."""

    def forward(self, x: Tensor) -> Tensor:
        ring = self.of_zero().view(1, -1, 1, 1)
        return F.pad(self.norm(x) - ring, [self.pad] * 4) + ring


class DBB(Block):
    """Diverse branch block (arXiv 2103.13425): k×k, 1×1, 1×1 – k×k, 1×1 – average; norms after every layer.

    A depthwise block has no 1×1 branch, a plain average, and two internal channels per input in the third branch.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, padder: type[RingPad] = ShiftPad, **geometry: int
    ) -> None:
        super().__init__(inputs, outputs, kernel, **geometry)  # type: ignore[arg-type]
        depthwise = self.groups == outputs
        inner = 2 * inputs if depthwise else inputs
        self.origin = self.conv_norm(kernel, self.pad)
        self.first = nn.Conv2d(inputs, inner, 1, groups=self.groups, bias=False)
        self.middle = padder(inner, self.pad)
        self.second = nn.Conv2d(inner, outputs, kernel, self.stride, groups=self.groups, bias=False)
        self.last = nn.BatchNorm2d(outputs)
        if depthwise:
            self.point = None
            self.average = nn.Sequential(nn.AvgPool2d(kernel, self.stride, self.pad), nn.BatchNorm2d(outputs))
        else:
            self.point = self.conv_norm(1)
            self.average = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, groups=self.groups, bias=False),
                padder(outputs, self.pad),
                nn.AvgPool2d(kernel, self.stride),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.origin(x)
        if self.point is not None:
            y = y + self.point(x)
        return y + self.last(self.second(self.middle(self.first(x)))) + self.average(x)


class DepthConcat(Block):
    """A grouped layer as its groups, side by side: DBB's fourth transform."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, **geometry: int) -> None:
        super().__init__(inputs, outputs, kernel, **geometry)  # type: ignore[arg-type]
        of = (inputs // self.groups, outputs // self.groups, kernel, self.stride, self.pad, self.dilation)
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Conv2d(*of, bias=False), nn.BatchNorm2d(of[1])) for _ in range(self.groups)
        )

    def forward(self, x: Tensor) -> Tensor:
        pieces = torch.chunk(x, self.groups, 1)
        return torch.cat([part(pieces[i]) for i, part in enumerate(self.parts)], 1)


class WideConcat(Block):
    """Branches over the same input, one beside the other: their kernels are one kernel's rows."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, **geometry: int) -> None:
        super().__init__(inputs, outputs, kernel, **geometry)  # type: ignore[arg-type]
        self.left = nn.Conv2d(inputs, outputs // 2, kernel, self.stride, self.pad, self.dilation, bias=False)
        self.right = nn.Conv2d(inputs, outputs - outputs // 2, kernel, self.stride, self.pad, self.dilation)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.cat([self.left(x), self.right(x)], 1))


class MobileOne(Block):
    """``branches`` × k×k, a 1×1 "scale" where k > 1, a skip where the shapes allow (arXiv 2206.04040)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, branches: int = 4, **geometry: int) -> None:
        super().__init__(inputs, outputs, kernel, **geometry)  # type: ignore[arg-type]
        self.branches = nn.ModuleList(self.conv_norm(kernel, self.pad) for _ in range(branches))
        self.scale = self.conv_norm(1) if kernel > 1 else None
        self.skip = nn.BatchNorm2d(inputs) if self.keeps_shape else None

    def forward(self, x: Tensor) -> Tensor:
        y = 0 if self.skip is None else self.skip(x)
        if self.scale is not None:
            y = y + self.scale(x)
        for branch in self.branches:
            y = y + branch(x)
        return y


class ExpandConv(Block):
    """ExpandNet-CL (arXiv 1811.10495): 1×1, k×k, 1×1, four times as wide; all padding is on the first 1×1."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, rate: int = 4, bias: bool = False, **geometry: int
    ) -> None:
        super().__init__(inputs, outputs, kernel, bias=bias, **geometry)  # type: ignore[arg-type]
        wide, deep, groups = rate * inputs, rate * outputs, self.groups
        self.chain = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, padding=self.pad, groups=groups, bias=bias),
            nn.Conv2d(wide, deep, kernel, self.stride, groups=groups, bias=bias),
            nn.Conv2d(deep, outputs, 1, groups=groups, bias=bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.chain(x)
        return y


class ExpandKernel(Block):
    """ExpandNet-CK: a k×k as a stack of 3×3 without padding between; the first pads for all, the last strides."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 5, rate: int = 4, **geometry: int) -> None:
        geometry = {"padding": 0} | geometry
        super().__init__(inputs, outputs, kernel, **geometry)  # type: ignore[arg-type]
        depth = kernel // 2
        widths = [inputs, *[rate * inputs] * (depth - 1), outputs]
        self.stack = nn.Sequential(
            *(
                nn.Conv2d(widths[i], widths[i + 1], 3, self.stride if i == depth - 1 else 1, self.pad if i == 0 else 0)
                for i in range(depth)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.stack(x)
        return y


class ExpandLinear(Block):
    """ExpandNet-FC: one linear layer as three."""

    def __init__(self, inputs: int, outputs: int, rate: int = 4) -> None:
        super().__init__(inputs, outputs, 1)
        wide = rate * inputs
        self.chain = nn.Sequential(nn.Linear(inputs, wide), nn.Linear(wide, wide), nn.Linear(wide, outputs))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.chain(x)
        return y

    def deploy(self) -> nn.Module:
        return nn.Linear(self.inputs, self.outputs)


class SESR(Block):
    """A collapsible linear block (arXiv 2103.09404): k×k to many channels, 1×1 back, a short residual."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, wide: int = 256, **geometry: int) -> None:
        super().__init__(inputs, outputs, kernel, **geometry)  # type: ignore[arg-type]
        self.widen = nn.Conv2d(inputs, wide, kernel, self.stride, self.pad)
        self.narrow = nn.Conv2d(wide, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.narrow(self.widen(x))
        return x + y if self.keeps_shape else y


class OREPA(Block):
    """The linear form of OREPA (arXiv 2204.00826): branches summed as *weights* in every forward, then one norm.

    k×k; 1×1 · average; 1×1 · a fixed frequency prior; 1×1 · k×k; 1×1; depthwise (8 ×) · 1×1, each with a learnt scale
    per output channel.
    """

    prior: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, **geometry: int) -> None:
        super().__init__(inputs, outputs, kernel, **geometry)  # type: ignore[arg-type]
        fan, k = inputs // self.groups, kernel
        self.origin = nn.Parameter(torch.randn(outputs, fan, k, k) / k)
        self.averaged = nn.Parameter(torch.randn(outputs, fan, 1, 1))
        self.filtered = nn.Parameter(torch.randn(outputs, fan))
        self.point = nn.Parameter(torch.randn(outputs, fan, 1, 1))
        self.left = nn.Parameter(torch.eye(fan).repeat(self.groups, 1) + 0.1 * torch.randn(inputs, fan))
        self.right = nn.Parameter(torch.randn(outputs, fan, k, k) / k)
        self.depthwise = nn.Parameter(torch.randn(8 * inputs, 1, k, k) / k)
        self.mix = nn.Parameter(torch.randn(outputs, 8 * fan, 1, 1) / 3)
        self.scales = nn.Parameter(torch.randn(6, outputs))
        self.register_buffer("prior", cosines(outputs, k))
        self.norm = nn.BatchNorm2d(outputs)

    def weight(self) -> Tensor:
        k, groups, fan = self.k, self.groups, self.inputs // self.groups
        split = (groups, self.outputs // groups, fan, k, k)
        left, right = self.left.view(groups, fan, fan), self.right.view(split)
        product = torch.einsum("gti,gothw->goihw", left, right)
        deep = self.depthwise.view(groups, fan, 8, k, k)
        mix = self.mix.view(groups, self.outputs // groups, fan, 8)
        branches = (
            self.origin,
            F.pad(self.averaged / k**2, [k // 2] * 4, mode="replicate"),
            torch.einsum("oi,ohw->oihw", self.filtered, self.prior),
            product.reshape(self.origin.shape),
            F.pad(self.point, [k // 2] * 4),
            torch.einsum("goim,gimhw->goihw", mix, deep).reshape(self.origin.shape),
        )
        return sum(b * self.scales[i].view(-1, 1, 1, 1) for i, b in enumerate(branches))  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(F.conv2d(x, self.weight(), None, self.stride, self.pad, self.dilation, self.groups))
        return y


def cosines(channels: int, kernel: int) -> Tensor:
    """``(channels, kernel, kernel)``: half of the channels vary along each axis, at rising frequency."""
    at = torch.arange(kernel, dtype=torch.float32) + 0.5
    frequency = torch.arange(channels // 2, dtype=torch.float32) + 1
    waves = torch.cos(math.pi / kernel * frequency[:, None] * at[None, :])
    rows, columns = waves[:, :, None].expand(-1, -1, kernel), waves[:, None, :].expand(-1, kernel, -1)
    rest = torch.ones(channels % 2, kernel, kernel)
    return torch.cat([rows, columns, rest])


class RepGhost(Block):
    """RepGhost's fusion (arXiv 2211.06088): a cheap depthwise layer plus a norm of its input."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__(inputs, outputs, kernel, groups=inputs)
        self.cheap, self.fusion = self.conv_norm(kernel, self.pad), nn.BatchNorm2d(inputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cheap(x) + self.fusion(x)
        return y


class RepMixer(Block):
    """FastViT's token mixer (arXiv 2303.14189): ``x + gamma · (mixer(x) − norm(x))``, depthwise."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__(inputs, outputs, kernel, groups=inputs)
        self.mixer = MobileOne(inputs, outputs, kernel, branches=1, groups=inputs)
        self.norm = nn.BatchNorm2d(inputs)
        self.gamma = nn.Parameter(0.5 + torch.rand(inputs, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * (self.mixer(x) - self.norm(x))


class LargeKernel(Block):
    """RepLKNet's large depthwise kernel with a small one beside it (arXiv 2203.06717)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 7, small: int = 3, **geometry: int) -> None:
        super().__init__(inputs, outputs, kernel, **geometry)  # type: ignore[arg-type]
        self.large, self.small = self.conv_norm(kernel, self.pad), self.conv_norm(small, small // 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.large(x) + self.small(x)
        return y
