"""The paper's networks, as tables: MobileNetV2 at several widths, MobileNetV2-Tiny, MCUNet; and one for digits.

All are chains of inverted residual blocks, so there is one class, :class:`InvertedResidualNet`, and one table
per network. Every leaf is a plain ``torch.nn`` layer and every forward traces with ``torch.fx``.

Sources:
    MobileNetV2: Sandler et al. 2018, arXiv:1801.04381, with torchvision's widths and initialisation.
    MobileNetV2-Tiny, MCUNet: Cai et al. 2022 (NetAug), arXiv:2110.08890, and its public configuration.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = [
    "BlockRow",
    "InvertedResidual",
    "InvertedResidualNet",
    "dscnn",
    "mcunet",
    "mobilenetv2_35",
    "mobilenetv2_50",
    "mobilenetv2_100",
    "mobilenetv2_tiny",
]


class BlockRow(NamedTuple):
    """Consecutive blocks of one width.

    Attributes:
        width: output channels of every block.
        expansions: per block, hidden channels over input channels.
        kernels: per block, kernel of the depthwise convolution in pixels.
        stride: of the first block; the others have stride 1.
    """

    width: int
    expansions: Sequence[int]
    kernels: Sequence[int]
    stride: int


class InvertedResidual(nn.Module):
    """Expand (1×1, norm, ReLU6), depthwise (k×k, norm, ReLU6), project (1×1, norm); a shortcut where shapes allow.

    Args:
        c_in: input channels.
        c_out: output channels.
        expansion: hidden channels over ``c_in``; with 1 there is no expand layer (depthwise-separable).
        kernel: of the depthwise convolution, odd, in pixels.
        stride: of the depthwise convolution.
    """

    def __init__(self, c_in: int, c_out: int, expansion: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        hidden = c_in * expansion
        self.shortcut = stride == 1 and c_in == c_out
        self.expand = None if expansion == 1 else _conv_norm(c_in, hidden, 1, act=True)
        self.depthwise = _conv_norm(hidden, hidden, kernel, stride=stride, groups=hidden, act=True)
        self.project = _conv_norm(hidden, c_out, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, c_in, H, W)`` to ``(N, c_out, ceil(H / stride), ceil(W / stride))``."""
        hidden = x if self.expand is None else self.expand(x)
        y: Tensor = self.project(self.depthwise(hidden))
        return x + y if self.shortcut else y


class InvertedResidualNet(nn.Module):
    """A 3×3 stem, inverted residual blocks, optionally a 1×1 head, global average pool, linear classifier.

    Convolutions start from He's normal initialisation (fan out), the classifier from N(0, 0.01²), as torchvision.

    Args:
        stem: output channels of the stem.
        stages: the blocks.
        head: output channels of the 1×1 convolution after the blocks; None for none.
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        stem_stride: stride of the stem.
    """

    def __init__(
        self,
        stem: int,
        stages: Sequence[BlockRow],
        head: int | None,
        *,
        num_classes: int,
        in_channels: int,
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["stem"] = _conv_norm(in_channels, stem, 3, stride=stem_stride, act=True)
        width = stem
        for stage in stages:
            for i, (expansion, kernel) in enumerate(zip(stage.expansions, stage.kernels, strict=True)):
                stride = stage.stride if i == 0 else 1
                layers[f"block{len(layers) - 1}"] = InvertedResidual(width, stage.width, expansion, kernel, stride)
                width = stage.width
        if head is not None:
            layers["head"] = _conv_norm(width, head, 1, act=True)
            width = head
        self.features = nn.Sequential(layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, num_classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to logits ``(N, num_classes)``."""
        y: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return y


def mobilenetv2_tiny(num_classes: int = 1000, in_channels: int = 3) -> InvertedResidualNet:
    """MobileNetV2-Tiny: the blocks of width 0.35 with a head of 448 channels; 23.5 M MACs at 144 px."""
    return _mobilenetv2(0.35, 448, num_classes, in_channels)


def mobilenetv2_35(num_classes: int = 1000, in_channels: int = 3) -> InvertedResidualNet:
    """MobileNetV2 at width 0.35."""
    return _mobilenetv2(0.35, 1280, num_classes, in_channels)


def mobilenetv2_50(num_classes: int = 1000, in_channels: int = 3) -> InvertedResidualNet:
    """MobileNetV2 at width 0.5; 50.2 M MACs at 160 px."""
    return _mobilenetv2(0.5, 1280, num_classes, in_channels)


def mobilenetv2_100(num_classes: int = 1000, in_channels: int = 3) -> InvertedResidualNet:
    """MobileNetV2 at width 1; 154.1 M MACs at 160 px."""
    return _mobilenetv2(1.0, 1280, num_classes, in_channels)


def mcunet(num_classes: int = 1000, in_channels: int = 3) -> InvertedResidualNet:
    """MCUNet as NetAug trains it; 81.8 M MACs at 176 px."""
    stages = (
        BlockRow(8, (1,), (3,), 1),
        BlockRow(16, (3, 5, 5, 4), (7, 3, 7, 5), 2),
        BlockRow(24, (5, 5, 5), (5, 5, 5), 2),
        BlockRow(40, (5, 6, 4), (3, 7, 5), 2),
        BlockRow(48, (5, 5, 5), (5, 7, 3), 1),
        BlockRow(96, (6, 5, 4), (3, 7, 3), 2),
        BlockRow(160, (5,), (7,), 1),
    )
    return InvertedResidualNet(16, stages, None, num_classes=num_classes, in_channels=in_channels)


def dscnn(num_classes: int = 10, in_channels: int = 1) -> InvertedResidualNet:
    """A depthwise-separable network for small images, from 7 × 7 pixels: 5 blocks, 6,842 parameters."""
    stages = (BlockRow(8, (3,), (3,), 1), BlockRow(12, (3, 3), (3, 3), 2), BlockRow(16, (3, 3), (3, 3), 2))
    return InvertedResidualNet(8, stages, None, num_classes=num_classes, in_channels=in_channels, stem_stride=1)


def _mobilenetv2(width: float, head: int, num_classes: int, in_channels: int) -> InvertedResidualNet:
    """Table 2 of arXiv:1801.04381: expansion, channels, blocks, stride."""
    table = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    stages = [BlockRow(_divisible(c * width), (t,) * n, (3,) * n, s) for t, c, n, s in table]
    stem = _divisible(32 * width)
    return InvertedResidualNet(stem, stages, head, num_classes=num_classes, in_channels=in_channels)


def _divisible(channels: float) -> int:
    """The nearest multiple of 8, at least 8, that is not more than 10 % below ``channels``."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def _conv_norm(c_in: int, c_out: int, kernel: int, *, stride: int = 1, groups: int = 1, act: bool) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers["norm"] = nn.BatchNorm2d(c_out)
    if act:
        layers["act"] = nn.ReLU6(inplace=True)
    return nn.Sequential(layers)


def _initialise(module: nn.Module) -> None:
    """Norms already start at ones and zeros."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.01)
        nn.init.zeros_(module.bias)
