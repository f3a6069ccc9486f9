"""A small residual network for 32-pixel images, with the widths of MLPerf Tiny's ResNet-8 and two strides more."""

from collections.abc import Sequence

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a 1×1 one.

    Args:
        c_in: channels of the input.
        c_out: channels of the output.
        stride: of the first convolution, and of the shortcut.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out),
        )  # fmt: skip
        self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, c_in, H, W)`` to ``(N, c_out, H / stride, W / stride)``."""
        y: Tensor = self.act(self.body(x) + self.shortcut(x))
        return y


class ResidualNet(nn.Module):
    """A 3×3 stem of stride 2, a block of stride 2 for each width, pooling, a classifier.

    Args:
        widths: channels of the blocks; the stem has those of the first.
        num_classes: outputs.
    """

    def __init__(self, widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        first, last = widths[0], widths[-1]
        self.stem = nn.Sequential(nn.Conv2d(3, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        self.blocks = nn.Sequential(*(ResidualBlock(a, b, 2) for a, b in zip((first, *widths), widths, strict=False)))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(last, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        y: Tensor = self.classifier(self.pool(self.blocks(self.stem(x))))
        return y
