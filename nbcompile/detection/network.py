"""A light YOLOv3 head on a backbone: raw maps out, in training as on the device.

Source: Redmon and Farhadi 2018, arXiv:1804.02767, sec. 2: anchors, what a map's channels are, upsampling. Two strides
in place of three, as of YOLOv3-tiny; depthwise-separable layers; maps that are added and not concatenated; the
width; and where objectness starts: ours.
"""

import math
from collections import OrderedDict
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbcompile.core.blocks import sites
from nbcompile.core.errors import UsageError
from nbcompile.detection.backbone import STRIDES, cut_backbone

ANCHORS = 3
"""Boxes that a cell of each map proposes."""
WIDTH = 64
"""Channels of the neck."""
COORDINATES = 5
"""Channels of a box before its classes: x, y, width, height, objectness."""
PRIOR = 0.01
"""Objectness of a network that has learnt nothing. Source: Lin et al. 2017, arXiv:1708.02002, sec. 3.3."""
PROBE = 128
"""Side of the image that a backbone is looked at with, in pixels: its maps are 8 and 4 cells wide."""


class Detector(nn.Module):
    """Maps of boxes at two strides; what their numbers mean is in ``nbcompile.detection.decode``.

    Args:
        backbone: a classifier, which is copied and cut (`nbcompile.detection.backbone`).
        num_classes: of objects; 1 or more.
        width: channels of the neck.
        in_channels: of the images.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, width: int = WIDTH, in_channels: int = 3) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("width", width)):
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"a detector's {name} is a whole number from 1, not {value!r}")
        parameter = next(backbone.parameters(), None)
        images = torch.zeros(1, in_channels, PROBE, PROBE)
        cut = cut_backbone(backbone, images if parameter is None else images.to(parameter))
        fine, coarse = cut.channels
        outputs = ANCHORS * (COORDINATES + num_classes)
        self.backbone = cut.graph
        _say_where(self.backbone, "backbone")
        self.from_fine, self.from_coarse = _conv_norm(fine, width, 1), _conv_norm(coarse, width, 1)
        self.neck_fine, self.neck_coarse = _separable(width), _separable(width)
        self.head_fine, self.head_coarse = nn.Conv2d(width, outputs, 1), nn.Conv2d(width, outputs, 1)
        _initialise((self.head_fine, self.head_coarse), num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``(N, C, H, W)`` to ``(N, A (5 + K), H / 16, W / 16)`` and ``(N, A (5 + K), H / 32, W / 32)``."""
        fine, coarse = self.backbone(images)
        coarse = self.neck_coarse(self.from_coarse(coarse))
        fine = self.neck_fine(self.from_fine(fine) + F.interpolate(coarse, scale_factor=2.0, mode="nearest"))
        return self.head_fine(fine), self.head_coarse(coarse)


def grid_of(size: int) -> tuple[tuple[int, int], ...]:
    """Rows and columns of the maps of square images of ``size`` pixels.

    Raises:
        UsageError: if it is no multiple of the coarser stride, or no more than that.
    """
    coarse = max(STRIDES)
    if size % coarse or size <= coarse:
        raise UsageError(f"a detector's input_size is a multiple of {coarse}, {2 * coarse} or more, not {size}")
    return tuple((size // stride, size // stride) for stride in STRIDES)


def _say_where(giant: nn.Module, place: str) -> None:
    """The blocks of ``giant`` know that they now stand in ``place``: a file is read by that."""
    for block in sites(giant).values():
        spec = block.spec
        absorbers = tuple(f"{place}.{key}" for key in spec.absorbers)
        block.spec = replace(spec, name=f"{place}.{spec.name}", absorbers=absorbers)


def _conv_norm(c_in: int, c_out: int, kernel: int, groups: int = 1) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    conv = layers["conv"] = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, groups=groups, bias=False)
    layers["norm"] = nn.BatchNorm2d(c_out)
    layers["act"] = nn.ReLU6(inplace=True)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    return nn.Sequential(layers)


def _separable(width: int) -> nn.Sequential:
    return nn.Sequential(_conv_norm(width, width, 3, groups=width), _conv_norm(width, width, 1))


def _initialise(heads: tuple[nn.Conv2d, ...], num_classes: int) -> None:
    """Boxes start as their anchors in the middle of their cells, and objects are rare."""
    for head in heads:
        nn.init.normal_(head.weight, 0.0, 0.01)
        bias = torch.zeros(ANCHORS, COORDINATES + num_classes)
        bias[:, COORDINATES - 1] = -math.log((1 - PRIOR) / PRIOR)
        with torch.no_grad():
            head.bias.copy_(bias.flatten())  # type: ignore[union-attr]
