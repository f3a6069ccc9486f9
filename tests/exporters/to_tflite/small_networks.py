"""Networks of a few layers for the tests of devices, and what they are calibrated on."""

import torch
from torch import Tensor, nn

from nbcompile.testing import scramble_


def small(size: tuple[int, int] = (16, 16), activation: type[nn.Module] = nn.ReLU6) -> tuple[nn.Module, Tensor]:
    """A convolution of stride 2, a depthwise one, a classifier; and its calibration set."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), activation(),
        nn.Conv2d(8, 16, 1), activation(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), activation(),
        nn.Conv2d(16, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    return scramble_(model).eval(), torch.randn(64, 3, *size)


def wide(activation: type[nn.Module] = nn.ReLU6) -> tuple[nn.Module, Tensor]:
    """An inverted residual whose wide map sets the peak of memory; and its calibration set."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 32, 1), activation(), nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=32), activation(),
        nn.Conv2d(32, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    return model.eval(), torch.randn(64, 3, 16, 16)
