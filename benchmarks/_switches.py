"""Networks with a switch to their deploy form, written as their authors' is: what ``fuse`` is timed against."""

import copy
from itertools import pairwise

import torch
from _detectors import Unit
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval


def units_switched(model: nn.Module) -> nn.Module:
    """As ultralytics does: the norm of every unit goes into its convolution, in a copy."""
    made = copy.deepcopy(model)
    for unit in made.modules():
        if isinstance(unit, Unit):
            unit.conv, unit.bn = fuse_conv_bn_eval(unit.conv, unit.bn), nn.Identity()
    return made


def _conv_norm(c_in: int, c_out: int, kernel: int, stride: int = 1, pad: int = 0, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, pad, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


class _NormThenPad(nn.Module):
    """A norm, and a ring of what it makes of zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C, H + 2, W + 2)``."""
        norm = self.norm
        ring = (norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()).view(1, -1, 1, 1)
        return F.pad(norm(x) - ring, [1, 1, 1, 1]) + ring


class DBB(nn.Module):
    """A 3×3 layer as four branches (Ding et al. 2021, arXiv 2103.13425): 3×3, 1×1, 1×1 to 3×3, 1×1 to average.

    Args:
        inputs: channels.
        outputs: channels.
        stride: of the layer.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.square, self.point = _conv_norm(inputs, outputs, 3, stride, 1), _conv_norm(inputs, outputs, 1, stride)
        self.first, self.pad = nn.Conv2d(inputs, inputs, 1, bias=False), _NormThenPad(inputs)
        self.second = _conv_norm(inputs, outputs, 3, stride)
        self.before, self.pad_average = nn.Conv2d(inputs, outputs, 1, bias=False), _NormThenPad(outputs)
        self.average = nn.Sequential(nn.AvgPool2d(3, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, outputs, H / stride, W / stride)``."""
        y: Tensor = self.square(x) + self.point(x) + self.second(self.pad(self.first(x)))
        return y + self.average(self.pad_average(self.before(x)))

    def switched(self) -> nn.Conv2d:
        """The layer, by the paper's transforms I to VI, in the dtype of the weights."""
        square, point = (fuse_conv_bn_eval(branch[0], branch[1]) for branch in (self.square, self.point))
        inner = fuse_conv_bn_eval(self.first, self.pad.norm)
        second = fuse_conv_bn_eval(self.second[0], self.second[1])
        before = fuse_conv_bn_eval(self.before, self.pad_average.norm)
        eye = torch.eye(square.out_channels, dtype=square.weight.dtype)
        even = eye[..., None, None].expand(-1, -1, 3, 3) / 9
        pool = nn.Conv2d(square.out_channels, square.out_channels, 3, bias=False).eval()
        pool.weight = nn.Parameter(even)
        average = fuse_conv_bn_eval(pool, self.average[1])
        made = nn.Conv2d(square.in_channels, square.out_channels, 3, self.stride, 1)
        pairs = [_sequence(inner, second), _sequence(before, average)]
        weights = [square.weight, F.pad(point.weight, [1, 1, 1, 1]), *(weight for weight, _ in pairs)]
        made.weight = nn.Parameter(sum(weights[1:], weights[0]).detach())
        made.bias = nn.Parameter((square.bias + point.bias + pairs[0][1] + pairs[1][1]).detach())
        return made


def _sequence(point: nn.Conv2d, square: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a 1×1 layer and a 3×3 one behind it: the paper's transform III."""
    weight = F.conv2d(square.weight, point.weight.permute(1, 0, 2, 3))
    return weight, (square.weight * point.bias.view(1, -1, 1, 1)).sum((1, 2, 3)) + square.bias


class DBBMobileNet(nn.Module):
    """Depthwise layers, and between them 3×3 layers of DBB; widths as of MobileNetV1."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 128, 256, 256, 512, 512)) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv_norm(3, widths[0], 3, 2, 1), nn.ReLU()]
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            layers += [_conv_norm(inputs, inputs, 3, 1, 1, inputs), nn.ReLU()]
            layers += [DBB(inputs, outputs, 1 + i % 2), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 1000))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, 3, H, W)`` to logits ``(N, 1000)``."""
        y: Tensor = self.head(self.layers(x))
        return y


def blocks_switched(model: nn.Module) -> nn.Module:
    """As DBB's authors do, in a copy; norms of other layers stay, as theirs do."""
    made = copy.deepcopy(model)
    for name, module in list(made.named_modules()):
        if isinstance(module, DBB):
            made.set_submodule(name, module.switched())
    return made
