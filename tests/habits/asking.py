"""Habits: Python asks what a value is."""

import numbers

import torch
from torch import nn
from torch.nn import functional as F

from tests.habits.table import TOKENS, Pair, conv, habit


@habit(sized=True)
class AsksIsinstance(Pair):
    def forward(self, x):
        if isinstance(x, torch.Tensor):
            x = x / 255
        return self.b(self.a(x))


@habit(sized=True)
class AsksIsTensor(Pair):
    def forward(self, x):
        x = [x * 2] if torch.is_tensor(x) else x
        return self.b(self.a(x[0]))


@habit(sized=True)
class AsksTypeIs(Pair):
    def forward(self, x):
        if type(x) is torch.Tensor:
            x = x - 0.5
        return self.b(self.a(x))


@habit(sized=True)
class MatchesType(Pair):
    def forward(self, x):
        match self.a(x):
            case torch.Tensor() as y:
                y = y * 3
            case y:
                y = y - 1
        return self.b(y)


@habit("whole", TOKENS, sites=0)
class TakesStateOfLstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList([nn.Linear(6, 6), nn.LSTM(6, 6, batch_first=True), nn.Linear(6, 3)])

    def forward(self, h):
        for step in self.steps:
            h = step(h)
            h = h[0] if isinstance(h, tuple) else h
        return h


@habit()
class TriesShape(Pair):
    def forward(self, x):
        y = self.a(x)
        try:
            b, c, h, w = y.shape
            y = y.reshape(b, c, h * w).softmax(-1).reshape(b, c, h, w)
        except Exception:
            pass
        return self.b(y)


@habit(sized=True)
class TriesAttribute(Pair):
    def forward(self, x):
        try:
            x = self.extra(x)
        except AttributeError:
            x = x * 2
        return self.b(self.a(x))


@habit(sized=True)
class AsksRankAndDtype(Pair):
    def forward(self, x):
        if x.dim() == 4 and x.ndim == len(x.shape) and x.is_floating_point() and x.dtype == torch.float64:
            x = x * 0.5
        if x.device.type == "cpu" and not x.is_cuda and not x.is_sparse:
            x = x + 1
        return self.b(self.a(x))


@habit(sized=True)
class AsksAttributes(Pair):
    def forward(self, x):
        if hasattr(x, "shape") and not hasattr(x, "tensors") and getattr(x, "mask", None) is None:
            x = x * 2
        return self.b(self.a(x)) if not callable(x) else x


@habit(sized=True)
class AsksLayout(Pair):
    def forward(self, x):
        y = self.a(x).transpose(2, 3)
        y = y if y.is_contiguous() else y.contiguous()
        return self.b(y)


@habit()
class AsksWhole(Pair):
    def forward(self, x):
        h, w = x.shape[-2:]
        if isinstance(h, int) and isinstance(w, numbers.Integral) and type(h) is int:
            x = x * 2
        return self.b(self.a(x))


@habit(sized=True, sites=0, norms=1)
class AsksOfParameters(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv(bias=False), nn.BatchNorm2d(4)

    def forward(self, x):
        w = self.conv.weight
        x = x.to(w.dtype).to(device=w.device, non_blocking=True)
        if w.requires_grad and x.shape[1] == w.size(1) and next(self.parameters()).dtype is x.dtype:
            x = x * w.shape[0]
        return F.relu(self.bn(self.conv(x)))


@habit(sized=True)
class TypesAs(Pair):
    def forward(self, x):
        y = self.a(x).type_as(x)
        return self.b(y.to(x)).to(y.dtype).double()
