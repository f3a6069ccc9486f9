"""Detectors in the manner of ultralytics' YOLO, written anew for the tests: v5, v8 and 11, and v8's classifier.

What matters to a compiler is there: one activation for every unit, layers that say from where they read, values kept
in a list with gaps, heads that put their maps into the list they were given, anchors that are kept as long as the shape
stays, a fixed convolution that decodes boxes, attention over positions.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

CLASSES, BINS = 5, 4


class Unit(nn.Module):
    """Convolution, norm, and the activation that all units share."""

    default_act = nn.SiLU()

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, g: int = 1, act: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, groups=g, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.act = self.default_act if act is True else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.bn(self.conv(x)))
        return y


class Bottleneck(nn.Module):
    def __init__(self, c: int, add: bool = True) -> None:
        super().__init__()
        self.cv1, self.cv2, self.add = Unit(c, c, 3), Unit(c, c, 3), add

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))
        return y


class C3(nn.Module):
    """v5's: a chain beside a 1×1."""

    def __init__(self, c1: int, c2: int, n: int = 1, add: bool = True) -> None:
        super().__init__()
        self.cv1, self.cv2, self.cv3 = Unit(c1, c2 // 2), Unit(c1, c2 // 2), Unit(c2, c2)
        self.m = nn.Sequential(*(Bottleneck(c2 // 2, add) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))
        return y


class C2f(nn.Module):
    """v8's: every link of the chain is kept; ``split`` tells whether by sizes or in halves."""

    def __init__(self, c1: int, c2: int, n: int = 1, add: bool = True, split: bool = False) -> None:
        super().__init__()
        self.c, self.split = c2 // 2, split
        self.cv1, self.cv2 = Unit(c1, c2), Unit((2 + n) * self.c, c2)
        self.m = nn.ModuleList([Bottleneck(self.c, add) for _ in range(n)])

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).split((self.c, self.c), 1) if self.split else self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        out: Tensor = self.cv2(torch.cat(y, 1))
        return out


class SPPF(nn.Module):
    def __init__(self, c1: int, c2: int, k: int = 5) -> None:
        super().__init__()
        self.cv1, self.cv2, self.m = Unit(c1, c1 // 2), Unit(c1 * 2, c2), nn.MaxPool2d(k, 1, k // 2)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        out: Tensor = self.cv2(torch.cat(y, 1))
        return out


class Attention(nn.Module):
    """11's: over positions, with a depthwise convolution of the values as their place."""

    def __init__(self, c: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.head_dim, self.key_dim = heads, c // heads, c // heads // 2
        self.scale = self.key_dim**-0.5
        self.qkv, self.proj = Unit(c, c + 2 * heads * self.key_dim, act=False), Unit(c, c, act=False)
        self.pe = Unit(c, c, 3, g=c, act=False)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        n = h * w
        qkv = self.qkv(x).view(b, self.heads, 2 * self.key_dim + self.head_dim, n)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.head_dim], dim=2)
        attn = ((q.transpose(-2, -1) @ k) * self.scale).softmax(dim=-1)
        y: Tensor = (v @ attn.transpose(-2, -1)).view(b, c, h, w) + self.pe(v.reshape(b, c, h, w))
        return self.proj(y) + x  # type: ignore[no-any-return]


class Concat(nn.Module):
    def __init__(self, d: int = 1) -> None:
        super().__init__()
        self.d = d

    def forward(self, x: list[Tensor]) -> Tensor:
        return torch.cat(x, self.d)


class Boxes(nn.Module):
    """The mean of a distribution over bins, by a convolution with fixed weights."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data[:] = torch.arange(bins, dtype=torch.float).view(1, bins, 1, 1)
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        b, _, a = x.shape
        y: Tensor = self.conv(x.view(b, 4, self.bins, a).transpose(2, 1).softmax(1)).view(b, 4, a)
        return y


class Detect(nn.Module):
    """Three maps in a list, which is written into; boxes and scores, and the maps."""

    dynamic = False
    shape: Any = None
    anchors, strides = torch.empty(0), torch.empty(0)

    def __init__(self, channels: Sequence[int], stride: Sequence[float] = (8.0, 16.0, 32.0)) -> None:
        super().__init__()
        self.no, self.stride = CLASSES + 4 * BINS, torch.tensor(stride)
        box = [nn.Sequential(Unit(c, 16, 3), Unit(16, 16, 3), nn.Conv2d(16, 4 * BINS, 1)) for c in channels]
        score = [nn.Sequential(Unit(c, 8, 3), Unit(8, 8, 3), nn.Conv2d(8, CLASSES, 1)) for c in channels]
        self.cv2, self.cv3, self.dfl = nn.ModuleList(box), nn.ModuleList(score), Boxes(BINS)

    def forward(self, x: list[Tensor]) -> Any:
        for i in range(len(self.cv2)):
            x[i] = torch.cat((self.cv2[i](x[i]), self.cv3[i](x[i])), 1)
        if self.training:
            return x
        shape = x[0].shape
        flat = torch.cat([xi.view(shape[0], self.no, -1) for xi in x], 2)
        if self.dynamic or self.shape != shape:
            self.anchors, self.strides = (y.transpose(0, 1) for y in make_anchors(x, self.stride))
            self.shape = shape
        box, score = flat.split((4 * BINS, CLASSES), 1)
        near, far = self.dfl(box).chunk(2, 1)
        low, high = self.anchors.unsqueeze(0) - near, self.anchors.unsqueeze(0) + far
        boxes = torch.cat(((low + high) / 2, high - low), 1) * self.strides
        return torch.cat((boxes, score.sigmoid()), 1), x


def make_anchors(maps: list[Tensor], strides: Tensor, offset: float = 0.5) -> tuple[Tensor, Tensor]:
    """Centres of the cells of all maps, in cells; the stride of each."""
    points, scales = [], []
    for i, stride in enumerate(strides):
        h, w = maps[i].shape[2:]
        sx = torch.arange(end=w, device=maps[i].device, dtype=maps[i].dtype) + offset
        sy = torch.arange(end=h, device=maps[i].device, dtype=maps[i].dtype) + offset
        sy, sx = torch.meshgrid(sy, sx, indexing="ij")
        points.append(torch.stack((sx, sy), -1).view(-1, 2))
        scales.append(torch.full((h * w, 1), float(stride), dtype=maps[i].dtype))
    return torch.cat(points), torch.cat(scales)


class Classify(nn.Module):
    def __init__(self, c1: int) -> None:
        super().__init__()
        self.conv, self.pool, self.drop = Unit(c1, 64), nn.AdaptiveAvgPool2d(1), nn.Dropout(p=0.0, inplace=True)
        self.linear = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor | list[Tensor]) -> Any:
        if isinstance(x, list):
            x = torch.cat(x, 1)
        x = self.linear(self.drop(self.pool(self.conv(x)).flatten(1)))
        return x if self.training else x.softmax(1)


class Yolo(nn.Module):
    """Layers that read the last value, or others by number; those that are read later are kept."""

    def __init__(self, layers: Sequence[tuple[int | list[int], nn.Module]]) -> None:
        super().__init__()
        self.model = nn.Sequential(*(layer for _, layer in layers))
        self.save = sorted({j for f, _ in layers for j in ([f] if isinstance(f, int) else f) if j != -1})
        for i, (f, layer) in enumerate(layers):
            layer.i, layer.f = i, f

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, dict):
            return self.loss(x, *args, **kwargs)
        return self.predict(x, *args, **kwargs)

    def predict(self, x: Any, visualize: bool = False, augment: bool = False, embed: list[int] | None = None) -> Any:
        y: list[Any] = []
        embeddings = []
        for m in self.model:
            if m.f != -1:
                x = y[m.f] if isinstance(m.f, int) else [x if j == -1 else y[j] for j in m.f]
            x = m(x)
            y.append(x if m.i in self.save else None)
            if embed and m.i in embed:
                embeddings.append(nn.functional.adaptive_avg_pool2d(x, (1, 1)).squeeze(-1).squeeze(-1))
        return torch.unbind(torch.cat(embeddings, 1), dim=0) if embeddings else x


NANO = (16, 32, 64, 128, 256)
"""Channels of YOLOv8n."""


def detector(kind: str, channels: Sequence[int] = (8, 16, 24, 32, 48)) -> nn.Module:
    """``yolov5``, ``yolov8``, ``yolo11`` or ``yolov8-cls``, of so many channels, random weights, in eval mode."""
    deep: dict[str, Any] = {"yolov5": C3, "yolov8": C2f, "yolov8-cls": C2f, "yolo11": C2f}
    block, options = deep[kind], {"split": True} if kind == "yolo11" else {}
    a, b, c, d, e = channels
    backbone: list[tuple[int | list[int], nn.Module]] = [
        (-1, Unit(3, a, 3, 2)), (-1, Unit(a, b, 3, 2)), (-1, block(b, b, 1, **options)), (-1, Unit(b, c, 3, 2)),
        (-1, block(c, c, 2, **options)), (-1, Unit(c, d, 3, 2)), (-1, block(d, d, 1, **options)),
        (-1, Unit(d, e, 3, 2)), (-1, block(e, e, 1, **options)),
    ]  # fmt: skip
    if kind == "yolov8-cls":
        return Yolo([*backbone, (-1, Classify(e))]).eval()
    last = nn.Sequential(SPPF(e, e), Attention(e)) if kind == "yolo11" else SPPF(e, e)
    up = nn.Upsample(None, 2, "nearest")
    neck: list[tuple[int | list[int], nn.Module]] = [
        (-1, last), (-1, up), ([-1, 6], Concat()), (-1, block(e + d, d, 1, False, **options)),
        (-1, nn.Upsample(None, 2, "nearest")), ([-1, 4], Concat()), (-1, block(d + c, c, 1, False, **options)),
        (-1, Unit(c, c, 3, 2)), ([-1, 12], Concat()), (-1, block(c + d, d, 1, False, **options)),
        (-1, Unit(d, d, 3, 2)), ([-1, 9], Concat()), (-1, block(d + e, e, 1, False, **options)),
        ([15, 18, 21], Detect((c, d, e))),
    ]  # fmt: skip
    return Yolo([*backbone, *neck]).eval()


DETECTORS = ("yolov5", "yolov8", "yolov8-cls", "yolo11")
