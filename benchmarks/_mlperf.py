"""Two networks of MLPerf Tiny (Banbury et al. 2021, arXiv:2106.07597): visual wake words and image classification."""

from torch import Tensor, nn


class VisualWakeWords(nn.Module):
    """MobileNetV1 of width 0.25, for 96 × 96 images and two classes."""

    def __init__(self) -> None:
        super().__init__()
        rows = [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1)]
        layers, width = [_conv(3, 8, 3, 2)], 8
        for out, stride in rows:
            layers += [_conv(width, width, 3, stride, groups=width), _conv(width, out, 1)]
            width = out
        self.layers, self.pool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 3, H, W)`` to logits ``(N, 2)``."""
        y: Tensor = self.classifier(self.pool(self.layers(x)).flatten(1))
        return y


class ResNet8(nn.Module):
    """Three residual blocks, for 32 × 32 images and ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 16, 3)
        self.blocks = nn.Sequential(_Residual(16, 16, 1), _Residual(16, 32, 2), _Residual(32, 64, 2))
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 3, H, W)`` to logits ``(N, 10)``."""
        y: Tensor = self.classifier(self.pool(self.blocks(self.stem(x))).flatten(1))
        return y


class _Residual(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(c_in, c_out, 3, stride), *_conv(c_out, c_out, 3)[:2])
        self.shortcut = nn.Identity() if (c_in, stride) == (c_out, 1) else nn.Conv2d(c_in, c_out, 1, stride)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.body(x) + self.shortcut(x))
        return y


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())
