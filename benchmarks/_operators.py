"""A network of operators that the others of ``on_device.py`` lack, each in two sizes: their kernels are timed, too."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Operators(nn.Module):
    """Pools, products, activations, larger depthwise windows and more, on 24 × 24 images with 3 channels.

    No transposed convolution: tflite-micro's CMSIS-NN kernel asks for its scratch memory within a check, which release
    builds leave out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stems = nn.ModuleList([nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 24, 3, 2, padding=1)])
        self.fives = nn.ModuleList([nn.Conv2d(c, c, 5, padding=2, groups=c) for c in (16, 24)])
        self.sevens = nn.ModuleList([nn.Conv2d(c, c, 7, padding=3, groups=c) for c in (16, 24)])
        self.strided = nn.ModuleList([nn.Conv2d(c, 8, 1, 2) for c in (16, 24)])
        self.heads = nn.ModuleList([nn.Linear(16, 10), nn.Linear(24, 40)])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(N, 3, 24, 24)`` to what each branch gives."""
        results = []
        for i in range(2):
            y = self.stems[i](x)
            five, seven = self.fives[i](y), self.sevens[i](F.relu(y))
            mixed = torch.sigmoid(five) * F.hardswish(seven) - F.leaky_relu(y, 0.1)
            small = self.strided[i](F.max_pool2d(mixed, 3, 1, 1) + F.avg_pool2d(mixed, 3, 1, 1))
            wide = torch.cat([small.flatten(1), F.interpolate(small, scale_factor=2.0).flatten(1)], 1)
            clipped = torch.maximum(F.avg_pool2d(mixed, 2), torch.tanh(F.max_pool2d(mixed, 2)))
            results += [wide, torch.softmax(self.heads[i](clipped.mean((2, 3))), 1), clipped.permute(0, 2, 1, 3)]
        return tuple(results)
