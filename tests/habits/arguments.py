"""Habits: what a network and its parts are called with."""

import torch
from torch import nn

from tests.habits.table import IMAGE, Pair, Unit, habit


class WithOptions(nn.Module):
    def __init__(self):
        super().__init__()
        self.unit = Unit()

    def forward(self, x, *, scale=1.0, skip=None):
        y = self.unit(x) * scale
        return y if skip is None else y + skip


@habit(sized=True)
class KeywordsOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = WithOptions(), WithOptions()

    def forward(self, x):
        options = {"scale": 2.0, "skip": x}
        return self.b(x=self.a(x, **options), scale=x.new_tensor(0.5))


@habit(sized=True, later=({"scale": 3.0}, {"scale": 1.0}, {"mask": torch.full((1,), 0.5, dtype=torch.float64)}))
class OptionalArguments(Pair):
    def forward(self, x, scale=1.0, mask=None):
        y = self.a(x) * scale
        if mask is not None:
            y = y * mask
        return self.b(y)


class ReadsItsLargest(nn.Module):
    def forward(self, x):
        return x * float(x.max())


@habit("piece", sized=True, later=({"scale": 3.0}, {"mask": torch.full((1,), 0.5, dtype=torch.float64)}))
class OptionsAroundAPart(Pair):
    def __init__(self):
        super().__init__()
        self.part = ReadsItsLargest()

    def forward(self, x, scale=1.0, mask=None):
        y = self.part(self.a(x)) * scale
        return self.b(y if mask is None else y * mask)


@habit("whole", IMAGE, IMAGE, sized=True)
class TwoInputs(Pair):
    def forward(self, x, y=None):
        return self.b(self.a(x) - (y if y is not None else x))


@habit("piece", [IMAGE, IMAGE], sized=True, batches=())
class ListInput(Pair):
    def forward(self, maps):
        return self.b(self.a(maps[0]) - maps[1]) if len(maps) == 2 else self.a(maps[0])


@habit("piece", {"a": IMAGE, "b": IMAGE}, sized=True, batches=())
class DictInput(Pair):
    def forward(self, given):
        return {key: getattr(self, key)(x) for key, x in given.items()}


@habit("whole", IMAGE, IMAGE, sized=True)
class StarredInputs(Pair):
    def forward(self, *xs, **options):
        x, *others = xs
        return self.b(self.a(x) + sum(others) * options.get("scale", 2.0))
