"""Networks whose int8 files round at many kinds of places, on inputs of odd sizes."""

import timm
import torch
from torch import Tensor, nn

from nbcompile.testing import scramble_

SIDES = (15, 13)


class Joined(nn.Module):
    """A residual sum, a clip, a concatenation of what is wide with what is narrow, pools of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.same = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.wide, self.narrow = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 5, 3, padding=1)
        self.head = nn.Linear(19, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.same(x)
        joined = torch.cat([4 * self.wide(x), self.narrow(x).relu(), x], 1)
        pooled = nn.functional.avg_pool2d(nn.functional.max_pool2d(joined, 2), 2)
        return self.head(pooled.flatten(2).mean(2))


def excited() -> nn.Module:
    """A squeeze-and-excitation block between smooth activations."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(inplace=True),
        timm.layers.SqueezeExcite(8), nn.Conv2d(8, 12, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(12, 7),
    )  # fmt: skip


NETWORKS = {"joined": Joined, "excited": excited}


def network(name: str) -> tuple[nn.Module, Tensor]:
    """One of them with weights of its own, and 24 inputs."""
    torch.manual_seed(0)
    return scramble_(NETWORKS[name]()).eval(), torch.randn(24, 3, *SIDES)
