"""Random networks of layers that pass channels on in every way; the same number gives the same network."""

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbcompile.testing import enliven_

SIZE = (6, 5)


class RandomNetwork(nn.Module):
    """A list of maps grows: each step takes some and adds one; the last ones are joined by the head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rng = random.Random(seed)
        self.layers = nn.ModuleList()
        self.plan: list[tuple[str, tuple[int, ...], Any]] = []
        widths = [3]
        for _ in range(self.rng.randint(3, 9)):
            widths.append(self._step(widths))
        used = {i for _, sources, _ in self.plan for i in sources}
        self.last = [i for i in range(len(widths)) if i not in used]
        self.head = nn.Linear(sum(widths[i] for i in self.last), 4)

    def _step(self, widths: list[int]) -> int:
        rng = self.rng
        i = rng.randrange(max(0, len(widths) - 3), len(widths))
        n, m = widths[i], rng.randint(2, 6)
        same = [j for j, width in enumerate(widths) if width == n and j != i and j]
        groups = rng.choice([g for g in range(1, n + 1) if n % g == 0])
        kinds = ["conv", "depthwise", "grouped", "norm", "gate", "twice", "glu", "half", "cat", "again"]
        kind = rng.choice(["conv"] if i == 0 else [*kinds, *["add", "mul", "paths"] * bool(same)])
        if (kind == "half" and n % 2) or (kind == "again" and not self._convs(n)):
            kind = "conv"
        made = {
            "conv": lambda: nn.Conv2d(n, m, 3, padding=1),
            "depthwise": lambda: nn.Conv2d(n, n, 3, padding=1, groups=n),
            "grouped": lambda: nn.Conv2d(n, groups * m, 1, groups=groups),
            "norm": lambda: nn.Sequential(nn.BatchNorm2d(n), nn.PReLU(n)),
            "gate": lambda: nn.Sequential(nn.Conv2d(n, m, 1), nn.ReLU(), nn.Conv2d(m, n, 1), nn.Sigmoid()),
            "twice": lambda: nn.Conv2d(n, n, 1),
            "glu": lambda: nn.Conv2d(n, 2 * m, 1),
        }.get(kind, nn.Identity)()
        self.layers.append(made)
        others: tuple[int, ...] = (rng.choice(same),) if kind in ("add", "mul", "paths") else ()
        if kind == "cat":
            others = tuple(rng.choices(range(1, len(widths)), k=rng.randint(1, 2)))
        option = rng.choice(self._convs(n)) if kind == "again" else rng.randrange(2)
        self.plan.append((kind, (i, *others), option))
        width = {"conv": m, "grouped": groups * m, "glu": m, "half": n // 2}.get(kind, n)
        if kind == "again":
            return int(self.layers[option].out_channels)
        return n + sum(widths[j] for j in others) if kind == "cat" else width

    def _convs(self, read: int) -> list[int]:
        return [
            k
            for k, (kind, _, _) in enumerate(self.plan)
            if kind in ("conv", "twice") and self.layers[k].in_channels == read
        ]

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for layer, (kind, sources, option) in zip(self.layers, self.plan, strict=True):
            first, *others = (values[i] for i in sources)
            values.append(self._value(kind, layer, first, others, option))
        joined = torch.cat([values[i] for i in self.last], 1)
        return self.head(joined.mean((2, 3)))

    def _value(self, kind: str, layer: nn.Module, x: Tensor, others: list[Tensor], option: int) -> Tensor:
        if kind == "gate":
            return x * layer(x.mean((2, 3), keepdim=True))
        if kind == "twice":
            return layer(layer(x).relu()) + x
        if kind == "glu":
            return F.glu(layer(x), 1)
        if kind == "half":
            return x.chunk(2, 1)[option]
        if kind == "cat":
            return torch.cat([x, *others], 1)
        if kind == "paths":
            return torch.stack([x, *others], 1).sum(1)
        if kind == "again":
            return self.layers[option](x).tanh()
        if kind in ("add", "mul"):
            return x + others[0] if kind == "add" else x * others[0].sigmoid()
        return layer(x).relu() if option else layer(x)


def random_network(seed: int) -> tuple[nn.Module, Tensor]:
    """In float64 and eval mode, every tensor lively; and its input."""
    torch.manual_seed(seed)
    x = torch.randn(2, 3, *SIZE, dtype=torch.float64)
    return enliven_(RandomNetwork(seed).double(), x, seed=seed), x
