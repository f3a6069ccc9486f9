"""Habits: constants made in ``forward``, random numbers, and the values of tensors read by Python."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.habits.table import TOKENS, Pair, Unit, conv, habit


@habit(sized=True)
class IndexesByConstant(Pair):
    def forward(self, x):
        x = x[:, torch.tensor([2, 1, 0, 3])]
        return self.b(self.a(x)[:, [3, 0, 1, 2]])


@habit(sized=True)
class AddsArange(Pair):
    def forward(self, x):
        return self.b(self.a(x) + torch.arange(4.0, dtype=x.dtype).view(1, 4, 1, 1))


@habit()
class AddsPositions(Pair):
    def forward(self, x):
        h, w = x.shape[-2:]
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w).flip(0), indexing="ij")
        grid = torch.stack([rows.to(x), columns / w, torch.zeros_like(x[0, 0]), torch.ones(h, w)])
        return self.b(self.a(x) + grid.expand(len(x), -1, -1, -1))


@habit()
class SamplesGrid(Pair):
    def forward(self, x):
        theta = torch.tensor([[1.0, 0.2, 0.0], [0.0, 0.9, 0.1]], dtype=x.dtype)
        grid = F.affine_grid(theta.repeat(x.shape[0], 1, 1), list(x.shape), align_corners=False)
        return self.b(F.grid_sample(self.a(x), grid, align_corners=False))


MEAN = torch.tensor([0.4, 0.5, 0.6, 0.7]).view(1, -1, 1, 1)


@habit(sized=True)
class NormalizesInside(Pair):
    def __init__(self):
        super().__init__()
        self.register_buffer("std", torch.full((1, 4, 1, 1), 0.3), persistent=False)
        self.gain = torch.tensor(2.0)
        self.levels = [0.5, 1.0, 2.0, 4.0]

    def forward(self, x):
        x = (x - MEAN) / self.std * self.gain
        return self.b(self.a(x) * torch.tensor(self.levels).view(4, 1, 1))


@habit(sized=True)
class UsesNumpy(Pair):
    def __init__(self):
        super().__init__()
        self.table = np.linspace(0.5, 2, 4)

    def forward(self, x):
        y = self.a(x) * torch.from_numpy(self.table).view(4, 1, 1)
        return self.b(y * float(np.sqrt(2.0)) + torch.as_tensor(np.float64(0.25)))


@habit("piece")
class ThroughNumpy(Pair):
    def forward(self, x):
        y = self.a(x)
        return self.b(torch.from_numpy(np.tanh(y.detach().numpy())))


@habit("piece")
class BranchesOnSum(Pair):
    def forward(self, x):
        if x.sum() > 0:
            return self.b(self.a(x))
        return self.a(self.b(x))


@habit("piece")
class BranchesInPart(Pair):
    def __init__(self):
        super().__init__()
        self.part = BranchesOnSum()

    def forward(self, x):
        return self.b(self.part(self.a(x) - 0.5))


@habit("piece")
class ReadsItem(Pair):
    def forward(self, x):
        return self.b(self.a(x) * x.mean().item()) + float(x.max()) + int(x.argmax())


@habit("piece")
class ReadsList(Pair):
    def forward(self, x):
        first, *_ = x.mean((1, 2, 3)).tolist()
        return self.b(self.a(x)) * first


@habit("piece")
class LoopsUntil(Pair):
    def forward(self, x):
        y = x
        while y.abs().max() > 0.5:
            y = y / 2
        return self.b(self.a(y))


@habit("piece")
class ComparesWhole(Pair):
    def forward(self, x):
        y = self.a(x)
        assert not torch.isnan(y).any(), "no number"
        if torch.equal(x, y) or torch.allclose(x, y) or (x == y).all():
            return x
        return self.b(y)


@habit("piece", sites=0)
class SelectsByValue(Pair):
    def forward(self, x):
        y = self.b(self.a(x))
        return y[y > 0.5], torch.nonzero(y > 1), y.masked_select(y < 0.1)


@habit("piece")
class IndexesByValue(Pair):
    def forward(self, x):
        i = int(x[0, 0].sum() > 0)
        return self.b(self.a(x)[:, i : i + 4]) if i == 0 else self.b(torch.roll(x, i, 1))


@habit("piece", sized=True)
class ReadsValuesOfConstants(Pair):
    def __init__(self):
        super().__init__()
        self.register_buffer("level", torch.tensor(2))
        self.register_buffer("steps", torch.tensor([1, 2]))

    def forward(self, x):
        y = self.a(x) * self.level.item()
        for step in self.steps.tolist():
            y = y + step
        return self.b(y) if self.level > 1 and bool(self.steps.sum()) else y


@habit("piece")
class BranchesOnWeights(Pair):
    def forward(self, x):
        y = self.a(x)
        return self.b(y) if self.b.conv.weight.sum() > 1e6 else self.b(-y)


@habit("piece")
class PrintsValues(Pair):
    def forward(self, x):
        y = self.a(x)
        self.said = f"{tuple(y.shape)} {y.dtype} {float(y.mean()):.2f} {y.flatten()[:2]}"
        return self.b(y)


@habit("safe")
class DrawsNoise(Pair):
    """Nothing random may be merged into weights."""

    def forward(self, x):
        y = self.a(x) * torch.rand(4, 1, 1, dtype=x.dtype) + torch.randn_like(x)
        return self.b(F.dropout(y, 0.5, training=True))


@habit("safe")
class Permutes(Pair):
    def forward(self, x):
        return self.b(self.a(x)[:, torch.randperm(4)])


@habit(sized=True)
class Selects(Pair):
    def forward(self, x):
        y = self.a(x)
        best, where = y.topk(2, dim=1)
        y = torch.where(y > 0.3, y, x.clamp(-1, 1)) + y.gather(1, where).sum(1, keepdim=True)
        return self.b(y.scatter(1, where, best * 2).masked_fill(y > 2, 2.0))


@habit(sized=True)
class Fourier(Pair):
    def forward(self, x):
        y = torch.fft.rfft2(self.a(x), norm="ortho")
        y = torch.view_as_complex(torch.view_as_real(y) * 0.5)
        return self.b(torch.fft.irfft2(y, s=x.shape[-2:], norm="ortho") + y.abs().mean())


@habit(sized=True, norms=0)
class LeakyOfSlopeOne(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Unit(act=nn.LeakyReLU(1.0)), Unit(act=nn.LeakyReLU(1.0))

    def forward(self, x):
        return F.leaky_relu(self.b(F.relu(self.a(x))), 1.0)


@habit("whole", TOKENS, sites=0)
class Rotates(nn.Module):
    """Rotary positions: tables made anew in each call, or kept."""

    def __init__(self):
        super().__init__()
        self.fc, self.register = nn.Linear(6, 6), None

    def forward(self, x):
        n, half = x.shape[1], x.shape[2] // 2
        angles = torch.outer(torch.arange(n, dtype=x.dtype), 100 ** (-torch.arange(half, dtype=x.dtype) / half))
        a, b = self.fc(x).chunk(2, -1)
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


@habit()
class Windows(Pair):
    """As Swin does, with an attention mask that is made from sizes."""

    def forward(self, x):
        b, c, h, w = x.shape
        x = F.pad(self.a(x), (0, -w % 4, 0, -h % 4))
        _, _, hp, wp = x.shape
        mask = torch.zeros(1, 1, hp, wp, dtype=x.dtype)
        for i, rows in enumerate((slice(0, -4), slice(-4, None))):
            mask[:, :, rows] = i
        y = torch.roll(x + mask, (-2, -2), (2, 3))
        y = y.view(b, c, hp // 4, 4, wp // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        y = y - y.mean(1, keepdim=True)
        y = y.view(b, hp // 4, wp // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, hp, wp)
        return self.b(y[:, :, :h, :w])


@habit(sized=True)
class UnfoldsAndFolds(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Unit(), conv()

    def forward(self, x):
        size = x.shape[-2:]
        columns = F.unfold(self.a(x), 3, padding=1)
        return self.b(F.fold(columns, size, 3, padding=1) / 9)


@habit("piece")
class CatchesItsAssertion(Pair):
    def forward(self, x):
        try:
            self.check(x)
        except AssertionError:
            x = x / 2
        return self.b(self.a(x))

    def check(self, x):
        assert (x > 3).any()
