"""Habits: hooks, parametrizations, methods of one's own on modules; tensors of a norm that others read."""

import types

from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tests.habits.table import Pair, Unit, conv, habit


@habit(sized=True, norms=1)
class ReadsNormElsewhere(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = conv(), nn.BatchNorm2d(4), conv()

    def forward(self, x):
        y = self.n(self.a(x)) * self.n.weight.sigmoid().view(1, -1, 1, 1)
        return self.b(y), self.n.weight, self.n.running_var


@habit(sized=True, norms=1)
class BorderOfBias(nn.Module):
    """As RepVGG-like blocks write a norm's shift into the border."""

    def __init__(self):
        super().__init__()
        self.n, self.c, self.d = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), conv()

    def forward(self, x):
        y = F.pad(self.n(x), (1, 1, 1, 1))
        border = self.n.bias.detach() - self.n.running_mean * self.n.weight / (self.n.running_var + self.n.eps).sqrt()
        y[:, :, 0:1, :] = border.view(1, -1, 1, 1)
        y[:, :, -1:, :] = border.view(1, -1, 1, 1)
        return self.d(F.relu(self.c(y)))


@habit("piece", sized=True, sites=0)
class Hooked(Pair):
    """Hooks that change what goes in and what comes out."""

    def __init__(self):
        super().__init__()
        self.a.conv.register_forward_hook(lambda m, args, y: y * 2)
        self.b.register_forward_pre_hook(lambda m, args: (args[0] + 1,))
        self.register_forward_hook(lambda m, args, y: y - 3)

    def forward(self, x):
        return self.b(self.a(x))


@habit("piece", sized=True)
class HookKeepsOutput(Pair):
    def __init__(self):
        super().__init__()
        self.a.register_forward_hook(lambda m, args, y: setattr(m, "seen", y))

    def forward(self, x):
        y = self.b(self.a(x))
        return y + self.a.seen


@habit("safe", sites=0)
class HookKeepsElsewhere(Pair):
    """The hook knows the original: a copy by copy.deepcopy does not run."""

    def __init__(self):
        super().__init__()
        self.seen = {}
        self.a.register_forward_hook(lambda m, args, y: self.seen.__setitem__("a", y))

    def forward(self, x):
        y = self.b(self.a(x))
        return y + self.seen["a"]


class CallsItself(nn.Conv2d):
    def __call__(self, x):
        return super().__call__(x) * 3


@habit(sized=True)
class OwnCall(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = CallsItself(4, 4, 1), nn.BatchNorm2d(4), Unit()

    def forward(self, x):
        return self.b(F.relu(self.n(self.a(x))))


class OwnForward(nn.Conv2d):
    def forward(self, x):
        return super().forward(x.abs())


@habit(sized=True)
class SubclassedConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = OwnForward(4, 4, 1), nn.BatchNorm2d(4), Unit()

    def forward(self, x):
        return self.b(F.relu(self.n(self.a(x))))


@habit("piece", sized=True, sites=0)
class ForwardOnInstance(Pair):
    def __init__(self):
        super().__init__()
        self.a.conv.forward = types.MethodType(lambda m, x: F.conv2d(x, m.weight * 2, padding=1), self.a.conv)
        self.b.forward = lambda x, old=self.b.forward: old(x) + x

    def forward(self, x):
        return self.b(self.a(x))


@habit(sized=True, norms=2, sites=0, file=False)
class Parametrized(Pair):
    def __init__(self):
        super().__init__()
        parametrizations.weight_norm(self.a.conv)
        parametrizations.spectral_norm(self.b.conv)

    def forward(self, x):
        return self.b(self.a(x))
