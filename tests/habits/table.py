"""The table of habits: small networks, each with one habit of ordinary PyTorch code, and what must hold of it.

A row is a class (or a function that builds a network) under ``@habit``. The networks are written as other people write
them, untyped: they are material, not examples of style.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from nbcompile.core.example import Inputs, TensorSpec, random_inputs
from nbcompile.testing import scramble_

Must = Literal["whole", "piece", "safe", "refused"]
Make = TypeVar("Make", bound=Callable[[], nn.Module])

IMAGE = TensorSpec((2, 4, 7, 5), torch.float64)
VECTOR = TensorSpec((2, 6), torch.float64)
TOKENS = TensorSpec((2, 5, 6), torch.float64)


@dataclass(frozen=True)
class Habit:
    """A row.

    Attributes:
        make: builds the network.
        must: ``whole``: captured as one graph, every norm merged; ``piece``: computed rightly, whole or not;
            ``safe``: computed rightly, or refused by a sentence that names the line; ``refused``: by such a sentence.
        inputs: of ``forward``; what the network is captured with.
        batches: at which it is compared, besides that of ``inputs``.
        sized: it computes rightly at another height and width, too; else it does, or refuses.
        later: keywords that are given to what comes back, one call for each: right or refused.
        norms: that may stay in the deploy form.
        layers: with weights, in the deploy form; None does not say.
        sites: so many layers, or more, does ``where="all"`` take; where it is 0, it may refuse.
        file: what was saved needs no code of the network's own.
    """

    make: Callable[[], nn.Module]
    must: Must
    inputs: tuple[Any, ...]
    batches: tuple[int, ...]
    sized: bool
    later: tuple[dict[str, Any], ...]
    norms: int
    layers: int | None
    sites: int
    file: bool

    @property
    def name(self) -> str:
        return self.make.__name__

    def build(self) -> nn.Module:
        """The same network each time, in float64 and eval mode, its norms scrambled."""
        torch.manual_seed(0)
        model = self.make()
        scramble_(model.double())
        for module in model.modules():
            module.training = False  # an exported program knows no eval()
        return model

    def calls(self) -> list[Inputs]:
        """What it is compared on: its own inputs, other batches, its own again."""
        drawn = [random_inputs(self.inputs, seed=batch, batch=batch) for batch in self.batches]
        return [self.example(), *drawn, self.example()]

    def example(self) -> Inputs:
        return random_inputs(self.inputs)

    def resized(self) -> Inputs | None:
        """Images of another height and width; None where no input is one."""
        if not any(isinstance(spec, TensorSpec) and len(spec.shape) == 4 for spec in self.inputs):
            return None
        return random_inputs([_taller(spec) for spec in self.inputs], seed=1)


def _taller(spec: Any) -> Any:
    if not isinstance(spec, TensorSpec) or len(spec.shape) != 4:
        return spec
    *outer, height, width = spec.shape
    return replace(spec, shape=(*outer, height + 2, width + 5))


HABITS: list[Habit] = []


def habit(
    must: Must = "whole",
    *inputs: Any,
    batches: tuple[int, ...] = (3, 1),
    sized: bool = False,
    later: tuple[dict[str, Any], ...] = (),
    norms: int = 0,
    layers: int | None = None,
    sites: int = 1,
    file: bool = True,
) -> Callable[[Make], Make]:
    """Put what is decorated into the table; without ``inputs`` it takes one ``IMAGE``."""

    def enter(make: Make) -> Make:
        row = Habit(make, must, inputs or (IMAGE,), batches, sized, later, norms, layers, sites, file)
        assert row.name not in {other.name for other in HABITS}
        HABITS.append(row)
        return make

    return enter


def conv(inputs: int = 4, outputs: int = 4, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """Keeps height and width."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


class Unit(nn.Module):
    """Convolution, norm, activation."""

    def __init__(self, inputs=4, outputs=4, kernel=3, act=None, **options):
        super().__init__()
        self.conv = conv(inputs, outputs, kernel, bias=False, **options)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = act or nn.ReLU()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Pair(nn.Module):
    """Two units, for networks whose ``forward`` is their habit."""

    def __init__(self):
        super().__init__()
        self.a, self.b = Unit(), Unit()
