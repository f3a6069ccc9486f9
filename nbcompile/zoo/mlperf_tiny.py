"""The four networks of MLPerf Tiny, as its reference models are built, and able to hold their trained weights.

Convolutions have biases in front of their norms, norms have Keras' epsilon, and strided layers pad as TensorFlow's
"same" does: the odd zero at the end, which PyTorch's own padding cannot say, so a ``ZeroPad2d`` stands before them.
The softmax behind the classifiers is left out: they give logits.

Sources:
    Banbury et al. 2021 (MLPerf Tiny Benchmark), arXiv:2106.07597, sec. 4, and github.com/mlcommons/tiny, whose folders
    ``benchmark/training/*`` have a ``keras_model.py`` or ``vww_model.py`` each.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Autoencoder", "DepthwiseSeparableNet", "ResNet8", "autoencoder", "dscnn_kws", "mobilenetv1_25", "resnet8"]

Pads = tuple[int, int, int, int]
_KERAS: dict[str, Any] = {"eps": 1e-3, "momentum": 0.01}
_EVEN_MAP: Pads = (0, 1, 0, 1)  # left, right, top, bottom: "same" of 3 × 3 at stride 2 on maps of even sizes


class DepthwiseSeparableNet(nn.Module):
    """A convolution, depthwise-separable blocks (3 × 3, then 1 × 1), an average pool, a linear classifier.

    Args:
        stem: the first convolution, norm and ReLU.
        width: its channels.
        blocks: per block, output channels and stride of the depthwise convolution.
        pool: from maps to one value a channel.
        num_classes: outputs of the classifier.
        dropout: rates behind the stem and behind the blocks; with 0 there is no layer.
    """

    def __init__(
        self,
        stem: nn.Module,
        width: int,
        blocks: Sequence[tuple[int, int]],
        pool: nn.Module,
        *,
        num_classes: int,
        dropout: tuple[float, float] = (0, 0),
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict(stem=stem)
        if dropout[0]:
            layers["stem_dropout"] = nn.Dropout(dropout[0])
        for i, (out, stride) in enumerate(blocks):
            layers[f"block{i}"] = _separable(width, out, stride)
            width = out
        if dropout[1]:
            layers["dropout"] = nn.Dropout(dropout[1])
        self.features = nn.Sequential(layers)
        self.pool = pool
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to logits ``(N, num_classes)``."""
        y: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return y


class ResNet8(nn.Module):
    """A convolution, three residual blocks of 16, 32 and 64 channels, global average pool, linear classifier.

    Args:
        num_classes: outputs of the classifier.
        in_channels: channels of the images, whose sizes are multiples of 4.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = _conv_norm(in_channels, 16, 3, act=True)
        self.blocks = nn.Sequential(_Residual(16, 16, 1), _Residual(16, 32, 2), _Residual(32, 64, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to logits ``(N, num_classes)``."""
        y: Tensor = self.classifier(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))
        return y


class Autoencoder(nn.Module):
    """Linear layers of 128 features, with a bottleneck of 8 in their middle; norm and ReLU behind all but the last.

    Args:
        in_features: of what is to be reproduced: five frames of 128 Mel energies.
    """

    def __init__(self, in_features: int = 640) -> None:
        super().__init__()
        widths = (in_features, *[128] * 4, 8, *[128] * 4)
        layers = [nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b, **_KERAS), nn.ReLU()) for a, b in pairwise(widths)]
        self.layers = nn.Sequential(*layers, nn.Linear(128, in_features))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_features)`` to its reproduction, of the same shape."""
        y: Tensor = self.layers(x)
        return y


def dscnn_kws(num_classes: int = 12, in_channels: int = 1) -> DepthwiseSeparableNet:
    """MLPerf Tiny's DS-CNN: keyword spotting on 49 frames of 10 MFCCs, and on no other size; 2,656,768 MACs."""
    stem = _conv_norm(in_channels, 64, (10, 4), 2, act=True, pads=(1, 1, 4, 5))
    # half of the input's sizes: of the map's 25 rows the last is read by nobody
    pool = nn.AvgPool2d((24, 5))
    return DepthwiseSeparableNet(stem, 64, [(64, 1)] * 4, pool, num_classes=num_classes, dropout=(0.2, 0.4))


def mobilenetv1_25(num_classes: int = 2, in_channels: int = 3) -> DepthwiseSeparableNet:
    """MLPerf Tiny's MobileNetV1 of width 0.25: visual wake words at 96 px; 7,489,664 MACs.

    It takes other sizes too; where a map of odd size is strided, TensorFlow would pad it otherwise.
    """
    blocks = [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1)]
    stem = _conv_norm(in_channels, 8, 3, 2, act=True)
    return DepthwiseSeparableNet(stem, 8, blocks, nn.AdaptiveAvgPool2d(1), num_classes=num_classes)


def resnet8(num_classes: int = 10, in_channels: int = 3) -> ResNet8:
    """MLPerf Tiny's ResNet-8: image classification at 32 px; 12,501,632 MACs."""
    return ResNet8(num_classes, in_channels)


def autoencoder(in_features: int = 640) -> Autoencoder:
    """MLPerf Tiny's autoencoder: anomaly detection on 640 features; 264,192 MACs."""
    return Autoencoder(in_features)


def _separable(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["depthwise"] = _conv_norm(c_in, c_in, 3, stride, groups=c_in, act=True)
    layers["pointwise"] = _conv_norm(c_in, c_out, 1, act=True)
    return nn.Sequential(layers)


class _Residual(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.first = _conv_norm(c_in, c_out, 3, stride, act=True)
        self.second = _conv_norm(c_out, c_out, 3, act=False)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride) if stride > 1 else None
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        y = self.act(y + (x if self.shortcut is None else self.shortcut(x)))
        return y


def _conv_norm(
    c_in: int,
    c_out: int,
    kernel: int | tuple[int, int],
    stride: int = 1,
    *,
    groups: int = 1,
    act: bool,
    pads: Pads = _EVEN_MAP,
) -> nn.Sequential:
    """Convolution, norm, and ReLU if ``act``; ``pads`` are those of a strided one."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if stride > 1:
        layers["pad"] = nn.ZeroPad2d(pads)
    padding = 0 if stride > 1 or isinstance(kernel, tuple) else kernel // 2
    layers["conv"] = nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups)
    layers["norm"] = nn.BatchNorm2d(c_out, **_KERAS)
    if act:
        layers["act"] = nn.ReLU()
    return nn.Sequential(layers)
