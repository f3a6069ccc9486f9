"""Habits: Python asks how large a value is, and computes with sizes."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from nbcompile.core.example import TensorSpec
from tests.habits.table import IMAGE, TOKENS, Pair, Unit, habit


@habit()
class MatchesShape(Pair):
    def forward(self, x):
        match tuple(x.shape):
            case (_, 4, h, w) if h != w:
                x = x.transpose(2, 3)
        return self.b(self.a(x))


@habit()
class PadsToMultiple(Pair):
    def forward(self, x):
        h, w = x.shape[-2:]
        if h % 8 or w % 8:
            x = F.pad(x, (0, -w % 8, 0, (8 - h % 8) % 8))
        return self.b(self.a(x))[..., :h, :w]


@habit("whole", TensorSpec((2, 4, 8, 6), torch.float64))
class AsksForParity(Pair):
    """Both sizes stay even when they are doubled; what the pass over identities drops must not be the guard."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        y = self.drop(self.a(x))
        return self.b(y.roll(1, 2) if y.size(3) % 2 else y.cumsum(3))


@habit()
class RoundsSizes(Pair):
    def forward(self, x):
        h, w = x.shape[2], x.size(3)
        y = self.a(x)[:, :, : math.ceil(h / 2), : int(w * 0.5)]
        y = y[..., : round(h / 3), :]
        return self.b(y) / math.sqrt(x.shape[1]) + math.prod(x.shape[1:]) + max(h, w) - min(h, w)


@habit()
class ResizesToAnother(Pair):
    def forward(self, x):
        y = self.a(F.max_pool2d(x, 2))
        if y.shape[-2:] != x.shape[-2:]:
            y = F.interpolate(y, size=x.shape[-2:], mode="nearest")
        y = F.interpolate(y, (2 * x.shape[2], int(x.shape[3] * 1.5)), mode="bilinear", align_corners=False)
        return self.b(y)


@habit()
class PoolsBySize(Pair):
    def forward(self, x):
        y = self.a(x)
        gate = F.avg_pool2d(y, y.size()[2:])
        return self.b(y * gate) + F.adaptive_avg_pool2d(y, (y.shape[2] // 2, 1)).mean((2, 3), keepdim=True)


@habit("whole", IMAGE, batches=(4, 6))
class ViewsTime(Pair):
    def forward(self, x, frames=2):
        bt, c, h, w = x.size()
        y = self.a(x).view(bt // frames, frames, c, h, w)
        y = torch.cat([y[:, 1:], y[:, :1]], 1).view(bt, c, h, w)
        return self.b(y)


@habit("piece")
class HalvesBatch(Pair):
    def forward(self, x):
        n = x.shape[0] // 2
        one, two = self.a(x[:n]), self.b(x[n:])
        return torch.cat([one, two])


@habit("piece")
class LoopsOverBatch(Pair):
    def forward(self, x):
        rows = [self.a(row[None]) for row in x]
        return self.b(torch.cat(rows)) * len(x)


@habit("piece")
class DividesByBatch(Pair):
    def forward(self, x):
        return self.b(self.a(x)) * (1.0 / x.shape[0]) + 1 / x.numel()


@habit("piece")
class BranchesOnBatch(Pair):
    def forward(self, x):
        return self.b(self.a(x)) if x.shape[0] > 1 else self.a(self.b(x))


@habit("piece")
class SquaresBatch(Pair):
    def forward(self, x):
        n = len(x)
        same = torch.eye(n, dtype=x.dtype) * n**2
        return self.b(self.a(x)), (same @ x.flatten(1)).view(x.shape)


@habit()
class FlattensBySize(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = Unit(), nn.Linear(140, 3)

    def forward(self, x):
        y = self.body(x)
        a, b = y.view(y.size(0), -1), y.view(len(y), y.shape[1:].numel())
        c = y.reshape(-1, y.shape[1] * y.shape[2] * y.shape[3])
        d = y.reshape((*y.shape[:1], -1)) + y.view(y.shape[:1] + torch.Size([140]))
        return self.head(a + b * c + d)


@habit("whole", TOKENS)
class AddsClassToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.fc = nn.Parameter(torch.randn(1, 1, 6)), nn.Linear(6, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        b, n, c = x.shape
        x = torch.cat([self.token.expand(b, -1, -1), x, x.new_ones((b, 1, c))], dim=1)
        assert x.shape[1] == n + 2, f"{x.shape} has another length"
        return self.out(F.relu(self.fc(x)))[:, 0]


@habit("whole", TOKENS, sites=0)
class PicksLastToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        last = torch.full((x.shape[0],), x.shape[1] - 1)
        return self.fc(x)[torch.arange(x.shape[0]), last]


@habit()
class GroupsBySize(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.unit = nn.Parameter(torch.randn(4, 1, 3, 3)), Unit()

    def forward(self, x):
        return self.unit(F.conv2d(x, self.weight, padding=1, groups=x.shape[1]))


@habit(sized=True)
class SplitsBySize(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.rest = Unit(1, 2), Unit(3, 4)

    def forward(self, x):
        a, b = torch.split(x, [1, x.shape[1] - 1], 1)
        return torch.cat([self.one(a), self.rest(b)], 1)


@habit(norms=1)
class ShufflesChannels(Pair):
    def forward(self, x):
        b, c, h, w = self.a(x).shape
        y = self.a(x).view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)
        left, right = y.chunk(2, dim=1)
        return self.b(torch.cat([right, left, *y.unbind(1)[:0]], 1))


@habit(norms=1)
class StripsOfSize(Pair):
    def forward(self, x):
        strips = [self.a(x[:, :, i : i + 2]) for i in range(0, x.shape[2], 2)]
        return self.b(torch.cat(strips, 2))


@habit(sized=True)
class ChoosesByChannels(nn.Module):
    def __init__(self):
        super().__init__()
        self.by = nn.ModuleDict({"c4": Unit(4, 6), "c6": Unit(6, 4)})

    def forward(self, x):
        for _ in range(2):
            x = self.by[f"c{x.shape[1]}"](x)
        torch._assert(x.shape[1] == 4, "other channels")
        return x


@habit("whole", TOKENS, batches=(3,))
class ScalesByLength(nn.Module):
    """A number that does not say where it is from, of a size in which no network is asked to differ."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.b(self.a(x).relu()) / len(x[0]) * x.shape[1]


@habit("whole", TensorSpec((2, 4, 8, 8), torch.float64))
class CutsToAWindow(Pair):
    """What is 8 wide at the example and at twice its size is narrower at others."""

    def forward(self, x):
        y = self.a(x)[:, :, :9, :9]
        return self.b(y) / y.shape[2] if y.shape[3] == 8 else self.b(y)
