"""Habits: what a network keeps between calls, writes in place, or hangs on its modules."""

import functools
import threading

import torch
from torch import nn
from torch.nn import functional as F

from tests.habits.table import TOKENS, Pair, conv, habit


@habit()
class KeepsGrid(Pair):
    def __init__(self):
        super().__init__()
        self.grid = None

    def forward(self, x):
        if self.grid is None or self.grid.shape[-1] != x.shape[-1]:
            self.grid = torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)
        return self.b(self.a(x) + self.grid)


@habit()
class KeepsMask(Pair):
    mask = None

    def forward(self, x):
        y = self.a(x)
        if not hasattr(self, "size") or self.size != y.shape[-1]:
            self.size = y.shape[-1]
            self.mask = torch.tril(torch.ones(self.size, self.size, dtype=y.dtype))
        return self.b(y @ self.mask)


@habit(sized=True)
class KeepsMeanTyped(Pair):
    """As EDSR and RCAN do."""

    def __init__(self):
        super().__init__()
        self.mean = torch.tensor([0.4, 0.5, 0.6, 0.7]).view(1, 4, 1, 1)

    def forward(self, x):
        self.mean = self.mean.type_as(x)
        return self.b(self.a((x - self.mean) * 2)) / 2 + self.mean


@habit()
class KeepsShape(Pair):
    """As YOLO's heads do."""

    def __init__(self):
        super().__init__()
        self.shape, self.anchors = None, torch.empty(0)

    def forward(self, x):
        maps = [self.a(x), self.b(x)]
        shape = maps[0].shape
        if self.shape != shape:
            self.anchors = torch.arange(shape[-1], dtype=x.dtype) + 0.5
            self.shape = shape
        return torch.cat([y.view(shape[0], 4, -1) for y in maps], 2), maps[0] * self.anchors


@habit(sized=True)
class KeepsLastOutput(Pair):
    def forward(self, x):
        self.last = self.a(x)
        self.outputs = {"a": self.last, "x": x}
        return self.b(self.last)


@habit(norms=1)
class CachesByFunction(Pair):
    @functools.lru_cache(maxsize=4)  # noqa: B019
    def ramp(self, n):
        return torch.arange(n, dtype=torch.float64)

    @functools.cached_property
    def scale(self):
        return self.a.bn.weight.new_full((1,), 1.5)

    def forward(self, x):
        return self.b(self.a(x) + self.ramp(x.shape[-1])) * self.scale


_CACHE: dict = {}


@habit()
class CachesOutside(Pair):
    def forward(self, x):
        key = x.shape[2:]
        if key not in _CACHE:
            _CACHE[key] = torch.ones(key, dtype=x.dtype).cumsum(1)
        return self.b(self.a(x) * _CACHE[key])


@habit(sized=True)
class CountsInBuffer(Pair):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        return self.b(self.a(x))


@habit("safe", sites=0)
class Averages(Pair):
    """An EMA of what it saw moves with every call."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.mean.mul_(0.9).add_(x.mean((0, 2, 3)), alpha=0.1)
        return self.b(self.a(x - self.mean.view(1, 4, 1, 1)))


@habit("refused", TOKENS, batches=(2,), sites=0)
class RemembersState(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer, self.h = nn.Linear(6, 6), nn.Linear(6, 6), None

    def forward(self, x):
        self.h = torch.tanh(self.inner(x)) if self.h is None else torch.tanh(self.inner(x) + self.outer(self.h))
        return self.h


@habit("safe", sites=0)
class Alternates(Pair):
    odd = False

    def forward(self, x):
        self.odd = not self.odd
        return self.a(x) if self.odd else self.b(x)


@habit("safe", sites=0)
class CountsInPython(Pair):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.b(self.a(x)) * self.calls


@habit(sized=True)
class WritesInput(Pair):
    def forward(self, x):
        x.sub_(0.5)
        x[:, 1] *= 2
        x += 1
        return self.b(self.a(x)) + x


@habit(sized=True)
class WritesValues(Pair):
    def forward(self, x):
        y = self.a(x)
        y[:, :2] = 0
        y.mul_(2).clamp_(max=3)
        y -= 0.1
        z = y[:, 2:]
        z.neg_()
        y[y < -1] = -1
        F.relu(y, inplace=True)
        return self.b(y)


@habit(sized=True, file=False)
class WritesOut(Pair):
    def forward(self, x):
        y = torch.empty_like(x)
        torch.add(x, 1, out=y)
        y[..., 0].copy_(x[..., 0])
        return self.b(self.a(y))


@habit()
class FillsTensor(Pair):
    def forward(self, x):
        b, c, h, w = x.shape
        out = x.new_zeros(b, 2 * c, h, w)
        out[:, ::2] = self.a(x)
        out[:, 1::2, 1:] += self.b(x)[:, :, 1:]
        return out


@habit("safe", sites=0)
class ClampsItsWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = conv(), conv()

    def forward(self, x):
        with torch.no_grad():
            self.a.weight.clamp_(-0.1, 0.1)
        return self.b(F.relu(self.a(x)))


@habit(sized=True)
class OtherWhenTraining(Pair):
    def forward(self, x):
        if self.training:
            self.steps = getattr(self, "steps", 0) + 1
            x = x + torch.randn_like(x)
        return self.b(F.dropout(self.a(x), 0.5, self.training))


@habit(sized=True)
class HasALock(Pair):
    """What cannot be copied is no part of what is computed."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x):
        with self.lock:
            return self.b(self.a(x))
