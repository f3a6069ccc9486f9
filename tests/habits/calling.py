"""Habits: how parts are called, shared and wrapped."""

import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.habits.table import TOKENS, Pair, Unit, conv, habit


@habit(sized=True)
class SharesActivation(nn.Module):
    def __init__(self):
        super().__init__()
        act = nn.SiLU()
        self.units = nn.ModuleList([Unit(act=act) for _ in range(3)])

    def forward(self, x):
        for unit in self.units:
            x = x + unit(x)
        return x


@habit(sized=True, norms=2)
class CallsUnitTwice(Pair):
    """Its norm is merged once; where it is called on something else, it has to stay."""

    def forward(self, x):
        y = self.b(self.a(self.a(x)))
        return y + self.a.bn(x) + self.b.bn(y)


@habit(sized=True, norms=1)
class UnderTwoNames(Pair):
    def __init__(self):
        super().__init__()
        self.again = self.a
        self.all = nn.ModuleList([self.b, self.a])

    def forward(self, x):
        return self.all[0](self.again(x) + self.a(x)) + self.all[1](x)


@habit(sized=True, norms=1)
class CallsForward(Pair):
    def forward(self, x):
        return self.b.forward(self.a.conv.forward(self.a.forward(x)))


@habit("safe", sized=True)
class CallsFunctionally(Pair):
    def forward(self, x):
        weights = {name: p * 2 for name, p in self.a.named_parameters()}
        y = torch.func.functional_call(self.a, weights, (x,))
        return self.b(y)


@habit(sized=True)
class Checkpoints(Pair):
    def forward(self, x):
        return checkpoint(self.b, checkpoint(self.a, x, use_reentrant=False), use_reentrant=False)


@habit("safe", TOKENS, sites=0)
class Vmaps(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        y = torch.vmap(lambda row: self.fc(row).cumsum(0))(x)
        return self.out(F.relu(y))


@habit("piece")
class RunsInThreads(Pair):
    def forward(self, x):
        with torch.no_grad(), ThreadPoolExecutor(2) as pool:
            a, b = pool.map(lambda part: part(x), [self.a, self.b])
        return a - 2 * b


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args, **options):
        return self.function(*args, **options)


@habit(sized=True)
class HasLambdas(Pair):
    def __init__(self):
        super().__init__()
        self.pre = Lambda(lambda x, k=2: x / k if isinstance(x, Tensor) else x)
        self.post = Lambda(partial(torch.add, alpha=2))

    def forward(self, x):
        y = self.b(self.a(self.pre(x, k=3)))
        return self.post(y, x)


def gate(x: Tensor, k: float = 2.0) -> Tensor:
    return x * torch.sigmoid(k * x)


with warnings.catch_warnings(action="ignore", category=FutureWarning):
    scripted_gate = torch.jit.script(gate)


@habit("piece", sized=True)
class ScriptedFunction(Pair):
    def forward(self, x):
        return self.b(scripted_gate(self.a(x)))


@habit("piece")
class ScriptedPart(Pair):
    def __init__(self):
        super().__init__()
        self.part = torch.jit.script(Unit())

    def forward(self, x):
        return self.b(self.part(self.a(x)))


@habit("safe", sites=0, file=False)
def scripted_model() -> nn.Module:
    return torch.jit.script(nn.Sequential(Unit(), Unit()))


@habit("safe", sites=0, file=False)
def traced_model() -> nn.Module:
    return torch.jit.trace(nn.Sequential(Unit(), Unit()).eval(), torch.randn(2, 4, 7, 5))


class Steep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, k):
        ctx.k = k
        return x.clamp(min=0) * k

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.k, None


@habit(sized=True)
class OwnAutograd(Pair):
    def forward(self, x):
        return self.b(Steep.apply(self.a(x), 2.5))


@habit(sized=True)
class ReturnsEarly(Pair):
    def __init__(self, depth=1):
        super().__init__()
        self.depth = depth

    def forward(self, x):
        x = self.a(x)
        if self.depth == 1:
            return x
        return self.b(x)


class Base(Pair):
    def forward(self, x):
        return self.a(self.prepare(x))

    @staticmethod
    def prepare(x):
        return x - 1


@habit(sized=True)
class Inherits(Base):
    @torch.no_grad()
    def forward(self, x):
        return self.b(super().forward(x))

    @classmethod
    def prepare(cls, x):
        return Base.prepare(x) * 2 if cls is not Base else x


@habit(sized=True, norms=2)
class Recurses(Pair):
    def forward(self, x, depth=2):
        return x if depth == 0 else self.b(self.forward(self.a(x), depth - 1))


@habit(sized=True, norms=1)
class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        for i in range(3):
            self.add_module(f"unit{i}", Unit())
        self.scales = nn.ParameterList([nn.Parameter(torch.randn(4, 1, 1)) for _ in range(3)])

    def forward(self, x):
        for i in range(3):
            x = getattr(self, f"unit{i}")(x) * self.scales[i]
        return self._modules["unit0"](x)


@habit(sized=True)
class InContexts(Pair):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False), torch.profiler.record_function("a"):
            x = self.a(x.to(torch.float64))
        with torch.inference_mode(False), torch.enable_grad():
            return self.b(x).detach()


@habit("whole", TOKENS)
class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.fc, self.out = nn.Linear(6, 18), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, c // 2 * 1).permute(2, 0, 3, 1, 4)
        weights = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(k.size(-1))
        y = (weights.softmax(-1) @ v).transpose(1, 2).flatten(2)
        y = y + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        return self.out(F.relu(self.fc(y)))


@habit("piece")
class MultiheadInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.unit, self.attention = Unit(), nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        y = self.unit(x)
        tokens = y.flatten(2).transpose(1, 2)
        seen, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return y + seen.transpose(1, 2).view_as(y)


@habit(sized=True)
class HoldsGraph(Pair):
    def __init__(self):
        super().__init__()
        self.part = fx.symbolic_trace(nn.Sequential(Unit(), Unit()))

    def forward(self, x):
        return self.b(self.part(self.a(x)))


@habit("safe", sites=0, file=False)
def exported_program() -> nn.Module:
    model = nn.Sequential(conv(), nn.ReLU(), conv()).double()
    batch = {0: torch.export.Dim.DYNAMIC}
    return torch.export.export(model, (torch.randn(2, 4, 7, 5).double(),), dynamic_shapes=(batch,)).module()


@habit(sized=True)
class TrainReturnsNothing(Pair):
    def train(self, mode=True):
        super().train(mode)
        for unit in (self.a, self.b):
            unit.bn.eval()

    def forward(self, x):
        return self.b(self.a(x))
