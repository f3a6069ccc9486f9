"""Habits of over-parameterised blocks, and what must be left of them."""

import torch
from torch import nn
from torch.nn import functional as F

from tests.habits.table import IMAGE, TOKENS, Pair, Unit, conv, habit


class MadeKernel(nn.Module):
    """As OREPA: the kernel of one convolution is computed from several parameters, by their sizes."""

    def __init__(self):
        super().__init__()
        self.w, self.pool = nn.Parameter(torch.randn(4, 4, 3, 3)), nn.Parameter(torch.randn(6, 4, 1, 1))
        self.back = nn.Parameter(torch.randn(4, 6, 1, 1))
        self.branches = nn.Parameter(torch.randn(2, 4))
        self.register_buffer("average", torch.full((6, 1, 3, 3), 1 / 9))
        self.bn = nn.BatchNorm2d(4)

    def kernel(self):
        groups = int(self.w.shape[0]) // self.w.size(0)
        averaged = torch.einsum("mi,mohw->mihw", self.pool[:, :, 0, 0], self.average)
        second = torch.einsum("om,mihw->oihw", self.back[:, :, 0, 0], averaged)
        if self.w.get_device() >= 0:
            second = second.cuda()
        return self.w * self.branches[0].view(-1, 1, 1, 1) + second * self.branches[1].view(-1, 1, 1, 1), groups

    def forward(self, x):
        weight, groups = self.kernel()
        return F.relu(self.bn(F.conv2d(x, weight, padding=1, groups=groups)))


@habit("whole", IMAGE, sized=True, layers=3, sites=0)
class OrepaLike(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(MadeKernel(), MadeKernel(), MadeKernel())

    def forward(self, x):
        return self.blocks(x)


class Edges(nn.Module):
    """As ECBSR: a 1×1 whose bias is written into the border, then a fixed depthwise mask with learned scales."""

    def __init__(self):
        super().__init__()
        self.plain = conv()
        self.first = conv(4, 4, 1)
        self.scale, self.bias = nn.Parameter(torch.randn(4, 1, 1, 1)), nn.Parameter(torch.randn(4))
        sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
        self.mask = nn.Parameter(sobel.expand(4, 1, 3, 3).clone(), requires_grad=False)

    def forward(self, x):
        y = F.conv2d(x, self.first.weight, self.first.bias, stride=1)
        y = F.pad(y, (1, 1, 1, 1), "constant", 0)
        border = self.first.bias.view(1, -1, 1, 1)
        y[:, :, 0:1, :], y[:, :, -1:, :] = border, border
        y[:, :, :, 0:1], y[:, :, :, -1:] = border, border
        edges = F.conv2d(y, self.scale * self.mask, self.bias, groups=int(self.scale.shape[0]))
        return F.relu(self.plain(x) + edges)


@habit(sized=True, layers=4)
class EcbsrLike(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Edges() for _ in range(4)])

    def forward(self, x):
        y = x
        for block in self.blocks:
            y = block(y)
        return y + x


class C2f(nn.Module):
    """As ultralytics': halves, a chain of bottlenecks of which every result is kept, one 1×1 over all."""

    def __init__(self, n, act):
        super().__init__()
        self.c = 2
        self.cv1, self.cv2 = Unit(4, 4, 1, act), Unit(2 * (2 + n), 4, 1, act)
        self.m = nn.ModuleList([nn.Sequential(Unit(2, 2, 3, act), Unit(2, 2, 3, act)) for _ in range(n)])

    def forward(self, x):
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) + y[-1] for m in self.m)
        return self.cv2(torch.cat(y, 1))


class Detect(nn.Module):
    """As ultralytics': maps are replaced in the list, anchors are kept as long as the shape is the same."""

    def __init__(self, act):
        super().__init__()
        self.shape, self.anchors = None, torch.empty(0)
        self.boxes = nn.ModuleList([nn.Sequential(Unit(4, 4, 3, act), nn.Conv2d(4, 4, 1)) for _ in range(2)])
        self.classes = nn.ModuleList([nn.Sequential(Unit(4, 4, 3, act), nn.Conv2d(4, 3, 1)) for _ in range(2)])

    def forward(self, x):
        for i in range(len(self.boxes)):
            x[i] = torch.cat((self.boxes[i](x[i]), self.classes[i](x[i])), 1)
        if self.training:
            return x
        shape = x[0].shape
        flat = torch.cat([y.view(shape[0], 7, -1) for y in x], 2)
        if self.shape != shape:
            sizes = [y.shape[-1] * y.shape[-2] for y in x]
            self.anchors = torch.cat([torch.arange(n, dtype=flat.dtype) + 0.5 for n in sizes])
            self.shape = shape
        box, cls = flat.split((4, 3), 1)
        return torch.cat((box * self.anchors, cls.sigmoid()), 1), x


@habit()
class YoloLike(nn.Module):
    def __init__(self):
        super().__init__()
        act = nn.SiLU(inplace=True)
        layers = [
            Unit(4, 4, 3, act),
            C2f(1, act),
            nn.MaxPool2d(2),
            C2f(2, act),
            nn.Upsample(scale_factor=2),
            C2f(1, act),
        ]
        self.model = nn.ModuleList([*layers, Detect(act)])
        self.save = [1, 3]

    def forward(self, x):
        x, y = F.pad(x, (0, 3, 0, 1)), []
        for i, m in enumerate(self.model):
            x = m(x if i < 6 else [y[1] if y[1] is not None else x, y[3]])
            y.append(x if i in self.save else None)
        return x


@habit("whole", TOKENS, layers=2, sites=0)
class NormAfterLinear(nn.Module):
    """As UniRepLKNet: channels last for the linear layers, channels first for the norm."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(6, 8), nn.Linear(8, 6, bias=False), nn.BatchNorm2d(6)

    def forward(self, x):
        y = F.relu(self.up(x.unsqueeze(1)))
        return self.norm(self.down(y).permute(0, 3, 1, 2).contiguous())


@habit(sized=True, layers=5, sites=3)
class AuxiliaryHeads(nn.Module):
    """As RepVGGplus: the body's units are what must be expanded, not the heads' alone."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([Unit(), Unit()])
        self.heads = nn.ModuleList([nn.Sequential(Unit(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))])
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        out = {}
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i < len(self.heads):
                out[f"aux{i}"] = self.heads[i](x)
        out["main"] = self.linear(x.mean((2, 3)))
        return out


@habit(sized=True, layers=2)
class RepVggLike(nn.Module):
    def __init__(self):
        super().__init__()
        three = [nn.Sequential(conv(bias=False), nn.BatchNorm2d(4)) for _ in range(2)]
        one = [nn.Sequential(conv(4, 4, 1, bias=False), nn.BatchNorm2d(4)) for _ in range(2)]
        self.three, self.one = nn.ModuleList(three), nn.ModuleList(one)
        self.identity = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])

    def forward(self, x):
        for three, one, identity in zip(self.three, self.one, self.identity, strict=True):
            skip = 0 if identity is None else identity(x)
            x = F.relu(three(x) + one(x) + skip)
        return x


@habit(sized=True, layers=3)
class SlopeOneBetween(nn.Module):
    """A leaky ReLU of slope 1 is the identity: 1×1, 3×3, 1×1 are one layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = Unit(), conv(4, 8, 1), conv(8, 4, 1, bias=False), Unit()

    def forward(self, x):
        y = F.relu(self.c(F.leaky_relu(self.b(self.a(x)), negative_slope=1.0)))
        return self.d(y)


@habit(sized=True)
class PartThatReads(Pair):
    """A part whose sizes come from a parameter, between units that must not suffer."""

    def __init__(self):
        super().__init__()
        self.weight, self.c = nn.Parameter(torch.randn(4, 1, 3, 3)), Unit()

    def forward(self, x):
        y = self.a(x)
        y = F.conv2d(y, self.weight, padding=int(self.weight.shape[-1]) // 2, groups=int(self.weight.shape[0]))
        return self.c(self.b(F.relu(y)))
