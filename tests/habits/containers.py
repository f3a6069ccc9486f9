"""Habits: lists, dicts and objects that carry values and are changed on the way."""

import functools
import itertools
from collections import OrderedDict, deque
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.habits.table import Pair, Unit, conv, habit


class UpWithSkips(nn.Module):
    """Cannot be traced with proxies, and changes the list that it is given."""

    def __init__(self):
        super().__init__()
        self.unit = Unit(8, 4)

    def forward(self, x, skips):
        skip = skips.pop()
        if x.shape[-2:] != skip.shape[-2:]:
            x = F.interpolate(x, size=skip.shape[-2:])
        return self.unit(torch.cat([x, skip], 1))


@habit()
class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([Unit(), Unit(), Unit()])
        self.up = nn.ModuleList([UpWithSkips(), UpWithSkips()])

    def forward(self, x):
        skips = []
        for down in self.down:
            x = down(x)
            skips.append(x)
            x = F.max_pool2d(x, 2, ceil_mode=True)
        for up in self.up:
            x = up(x, skips)
        return x, skips[0]


class Reverser(nn.Module):
    def __init__(self):
        super().__init__()
        self.unit = Unit()

    def forward(self, maps):
        maps.reverse()
        if maps[0].shape[2] != maps[1].shape[2]:
            maps[0] = F.interpolate(maps[0], size=maps[1].shape[2:])
        return self.unit(maps[0] - maps[1] / 2)


@habit()
class ReversesMaps(Pair):
    def __init__(self):
        super().__init__()
        self.neck = Reverser()

    def forward(self, x):
        maps = [self.a(x), self.b(F.avg_pool2d(x, 2))]
        y = self.neck(maps)
        return y + maps[0] * 2 - maps[1]


class PoppingHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.unit = Unit()

    def forward(self, maps):
        first = maps.pop(0)
        return self.unit(first) if first.shape[1] == 4 else first


@habit(sized=True, norms=1)
class PopsFirst(Pair):
    def __init__(self):
        super().__init__()
        self.head = PoppingHead()

    def forward(self, x):
        maps = [self.a(x), self.b(x), x]
        return self.head(maps) + self.head(maps) * 2 + maps[0]


@habit(sized=True)
class SetsItems(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.heads = Unit(), nn.ModuleList([Unit(4, 6), Unit(4, 6)])

    def forward(self, x):
        x = [self.stem(x), x]
        for i, head in enumerate(self.heads):
            x[i] = head(x[i])
            x[i] = x[i][:, :3] * x[i][:, 3:].sigmoid()
        return x


@habit(sized=True)
class FillsDict(Pair):
    def forward(self, x):
        feats = {"x": x}
        feats["a"] = self.a(feats.pop("x"))
        feats.update(b=self.b(feats["a"]))
        feats.setdefault("a", x)
        key, last = feats.popitem()
        del feats["a"]
        return last if key == "b" and not feats else x


@habit(sized=True)
class SortsMaps(Pair):
    def forward(self, x):
        maps = [self.a(x), F.max_pool2d(x, 2), F.max_pool2d(x, 3)]
        maps.sort(key=lambda y: y.shape[-1])
        maps.insert(0, self.b(maps[-1]))
        maps.extend(y * 2 for y in maps[1:3])
        return tuple(reversed(maps))


@habit(sized=True)
class UsesDeque(Pair):
    def forward(self, x):
        waiting, done = deque([self.a, self.b]), deque(maxlen=2)
        while waiting:
            x = waiting.popleft()(x)
            done.appendleft(x)
        return done[0] - done[1] * 3


class Appending(nn.Module):
    def __init__(self):
        super().__init__()
        self.unit = Unit()

    def forward(self, x, into):
        into.append(self.unit(x) if x.shape[1] == 4 else x)


@habit(sized=True)
class AppendsToGiven(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = Appending(), Appending()

    def forward(self, x):
        into = []
        self.one(x, into)
        self.two(into[0], into=into)
        return into[0] + 2 * into[-1]


@habit(sized=True)
class Folds(nn.Module):
    def __init__(self):
        super().__init__()
        self.units = nn.ModuleList([Unit() for _ in range(4)])

    def forward(self, x):
        one = functools.reduce(lambda y, unit: unit(y), self.units[:2], x)
        several = sum(unit(x) for unit in self.units[2:])
        *_, last = itertools.accumulate([one, several, x], torch.add)
        return last + torch.stack([y for y, _ in zip([one, several], self.units, strict=False)]).mean(0)


@habit(sized=True, norms=2)
class FlowsInLoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.flow = nn.Sequential(OrderedDict(a=Unit(), pool=nn.MaxPool2d(3, 1, 1), b=Unit(), drop=nn.Dropout()))

    def forward(self, x):
        for i, (name, layer) in enumerate(self.flow.named_children()):
            x = layer(x) + (x if i and name != "drop" else 0)
        return self.flow[2:](x) + self.flow[0](x)


@dataclass
class Carried:
    x: Tensor
    skip: Tensor | None = None


class Carrier(nn.Module):
    def __init__(self):
        super().__init__()
        self.unit = Unit()

    def forward(self, state):
        if state.skip is not None:
            state.x = state.x + state.skip
        state.skip = state.x
        state.x = self.unit(state.x)
        return state


@habit(sized=True)
class CarriesDataclass(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps = nn.Sequential(Carrier(), Carrier(), Carrier())

    def forward(self, x):
        return self.steps(Carried(x)).x


class Named(NamedTuple):
    high: Tensor
    low: Tensor


@habit(sized=True)
class PassesNamedTuple(Pair):
    def forward(self, x):
        both = Named(self.a(x), F.max_pool2d(x, 2))
        both = both._replace(low=self.b(both.low))
        return both.high.mean((2, 3)) - both.low.amax((2, 3))


@habit(sized=True)
class KeepsInNamespace(Pair):
    def forward(self, x):
        seen = SimpleNamespace(y=x)
        for name in ("a", "b"):
            setattr(seen, name, getattr(self, name)(seen.y))
            seen.y = getattr(seen, name) * 2
        return seen.y + vars(seen)["a"]


@habit(sized=True)
class KeyedByTensor(Pair):
    def forward(self, x):
        y = self.a(x)
        names = {x: 2.0, y: 3.0}
        return self.b(y * names[y]) * names[x] if y is not x and any(z is y for z in names) else y


@habit(sized=True)
class ListOnTheModule(Pair):
    """Filled and emptied in every call."""

    def __init__(self):
        super().__init__()
        self.features = []

    def forward(self, x):
        self.features.clear()
        self.features.append(self.a(x))
        self.features += [self.b(self.features[0])]
        y = self.features.pop() + self.features.pop(0)
        return y


@habit(sized=True)
class StarsAndSlices(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList([conv(4, 2), conv(4, 2), conv(4, 3)])

    def forward(self, x):
        first, *others = [head(x) for head in self.heads]
        others[:1] = [others[0] * 2, first]
        others += (first,)
        return torch.cat(others[::-1], 1)
