"""Habits: what a network returns."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.habits.table import IMAGE, Pair, Unit, habit


@habit(sized=True)
class ReturnsDict(Pair):
    def forward(self, x):
        y = self.a(x)
        return {"out": self.b(y), "aux": {"x": x, "y": [y, None]}}


@habit(sized=True)
class ReturnsOrderedDict(Pair):
    def forward(self, x):
        found = OrderedDict()
        found["b"] = self.b(x)
        found["a"] = self.a(found["b"])
        found.move_to_end("b")
        return found


@dataclass
class Answer:
    logits: Tensor
    hidden: tuple[Tensor, ...] | None = None


@habit(sized=True, file=False)
class ReturnsDataclass(Pair):
    def forward(self, x):
        y = self.a(x)
        return Answer(self.b(y), (x, y))


class ModelOutput(OrderedDict):
    """As Hugging Face's: a dict with attributes."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@habit(sized=True, later=({"return_dict": False}, {"features": True}), file=False)
class ReturnsOwnDict(Pair):
    def forward(self, x, return_dict=None, features=False):
        y = self.a(x)
        if return_dict is False:
            return self.b(y), y
        out = ModelOutput(logits=self.b(y))
        if features:
            out["features"] = y
        return out


class Both(NamedTuple):
    high: Tensor
    low: Tensor


@habit(sized=True, file=False)
class ReturnsNamedTuple(Pair):
    def forward(self, x):
        return Both(low=self.a(x), high=self.b(x))


@habit(sized=True, file=False)
class ReturnsTupleOfTorch(Pair):
    def forward(self, x):
        best = self.b(self.a(x)).max(dim=1)
        return best.values * 2, best, best.indices


@habit(sized=True)
class ReturnsInput(Pair):
    def forward(self, x):
        y = self.a(x)
        return x, y, [y, (y, x)], self.b(y)


@habit(sized=True)
class ReturnsConstants(Pair):
    def forward(self, x):
        y = self.b(self.a(x))
        return y, torch.tensor([1.0, 2.0]), torch.ones(y.shape[0], 1), None


@habit(file=False)
class ReturnsNumbers(Pair):
    """Sizes beside the tensors are no tensors."""

    def forward(self, x):
        y = self.b(self.a(x))
        return {"y": y, "size": y.shape[2:], "name": "logits"}


@habit("piece")
class ReturnsListOfBatch(Pair):
    def forward(self, x):
        return list(self.b(self.a(x)).unbind(0))


@habit("whole", IMAGE, sized=True)
class ReturnsListOfUnits(nn.Module):
    def __init__(self):
        super().__init__()
        self.units = nn.ModuleList([Unit(), Unit(), Unit()])

    def forward(self, x):
        outs = []
        for unit in self.units:
            outs.append(unit(outs[-1] if outs else x))
        return outs[1:] if len(outs) > 2 else outs
